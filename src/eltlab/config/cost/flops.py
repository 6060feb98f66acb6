"""Parameters, MACs and FLOPs of a network, in closed formulas. Pure Python, no torch.

1 MAC (multiply and add) = 2 FLOPs. The literature's "GFLOPs" of looped and diffusion transformers are MACs
(docs/compute.md). Only matrix products are counted, as in torch's FlopCounterMode; norms,
activations and softmax are not. Exclusive attention and residual scaling add no matrix product.

Symbols: d width, m MLP width, c condition width, T tokens in the trunk, T′ tokens of the image,
N unique layers, L loops, D effective depth, K codes, P values in a patch.
"""

from collections.abc import Callable, Sequence

from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.network_shape import TIME_FEATURES, Network, network
from eltlab.config.sampling_schedules import LoopSchedule, evaluations, loop_schedule
from eltlab.config.schema import Config, Spent


def params_blocks(net: Network) -> int:
    """Parameters of all layers: prelude, N looped layers, coda.

    A layer has 4d² + 4d in attention, 2dm + d + m in the MLP and 4d in two norms. adaln has
    6d(c + 1) of modulation instead of norm gains, and film 2m(c + 1) in addition.
    """
    d, m = net.width, net.mlp_width
    norms = 0 if net.block == "adaln" else 4 * d
    layer = 4 * d * d + 4 * d + 2 * d * m + d + m + norms + net.modulation * (net.cond_width + 1)
    return net.layers * layer


def params_embedding(net: Network) -> int:
    """Parameters before the blocks, with loop embedding and injection.

    Masked: codes and [MASK] (K + 1)d, labels (classes + 1)d, positions Td, a norm 2d. Diffusion:
    patches Pd + d, time 256c + c² + 2c, labels (classes + 1)c. Loop embedding Ld, injection d² + d.
    """
    d, c = net.width, net.cond_width
    loop = net.loop_embedding * net.loops * d + net.inject_input * (d * d + d)
    if net.masked:
        return loop + (net.codes + 1 + net.classes + 1 + net.trunk_tokens + 2) * d
    time = TIME_FEATURES * c + c * c + 2 * c
    return loop + net.patch_values * d + d + time + (net.classes + 1) * c


def params_head(net: Network) -> int:
    """Parameters of the shared head.

    Masked: d² + d, a norm 2d (with pre_norm a second one before it), a bias K (the matrix is shared with
    the embedding). Diffusion: dP + P, and 2d(c + 1) of modulation (adaln) or a norm 2d.
    """
    d, p = net.width, net.patch_values
    if net.masked:
        return d * d + 3 * d + 2 * d * bool(net.final_norm) + net.codes
    return d * p + p + (2 * d * (net.cond_width + 1) if net.block == "adaln" else 2 * d)


def params_total(net: Network) -> int:
    """All trained parameters."""
    return params_blocks(net) + params_embedding(net) + params_head(net)


def macs_per_pass(net: Network, loops: int, exits_read: int = 1) -> int:
    """MACs of one network evaluation of one sample: trunk, embedding, conditions, injection, heads."""
    # The injection is one product, d²T, in every pass of more than one loop.
    injection = net.inject_input * (loops > 1) * net.width**2 * net.trunk_tokens
    outside = macs_embedding(net) + macs_condition(net) + injection
    return macs_trunk(net, loops, exits_read) + outside + exits_read * macs_head(net)


def macs_trunk(net: Network, loops: int, exits_read: int = 1) -> int:
    """MACs of the layers alone: D·(4d²T + 2dmT + 2T²d), which is D·(12d²T + 2T²d) for m = 4d."""
    return net.depth_of(loops, exits_read) * macs_layer(net)


def macs_attention(net: Network, loops: int, exits_read: int = 1) -> int:
    """MACs of the trunk that grow with T²: queries · keys and weights · values, D·2T²d."""
    return net.depth_of(loops, exits_read) * 2 * net.trunk_tokens**2 * net.width


def macs_layer(net: Network) -> int:
    """MACs of one layer, 4d²T + 2dmT + 2T²d, without its condition (see `macs_condition`)."""
    d, t = net.width, net.trunk_tokens
    return 4 * d * d * t + 2 * d * net.mlp_width * t + 2 * t * t * d


def macs_embedding(net: Network) -> int:
    """MACs of the input: patches PdT′. Looking up tokens is free."""
    return 0 if net.masked else net.tokens * net.patch_values * net.width


def macs_condition(net: Network) -> int:
    """MACs of the conditions, once per pass: time 256c + c², modulation of every layer (adaln 6dc, film
    2mc) and of adaln's head 2dc. Masked networks look up a class token instead."""
    if net.masked:
        return 0
    c = net.cond_width
    head = 2 * net.width * c if net.block == "adaln" else 0
    return TIME_FEATURES * c + c * c + net.layers * net.modulation * c + head


def macs_head(net: Network) -> int:
    """MACs of the head: masked T′(d² + dK), diffusion T′dP."""
    return net.tokens * net.width * (net.outputs + net.width * net.masked)


def requested_depths(loops: LoopSchedule, steps: int) -> list[DepthDistribution]:
    """The depths at each sampling step if no pass halts."""
    return [{count: 1.0} for count in loop_schedule(loops, steps)]


def evaluations_per_step(config: Config) -> list[int]:
    """Network evaluations of one sample at each sampling step. Their sum is the NFE."""
    sampler = config.sampler
    passes = evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)
    return [guided * stages for guided, stages in zip(passes, sampler.stages, strict=True)]


def cost_per_sample(
    config: Config, depths: Sequence[DepthDistribution], cost_of_pass: Callable[[int], int]
) -> float:
    """The cost of one sample, such as its MACs: the sum of cost_of_pass(loops) over all its passes.

    depths: for each sampling step, the share of passes at each loop count.
    """
    return sum(
        passes * sum(share * cost_of_pass(loops) for loops, share in at_step.items())
        for passes, at_step in zip(evaluations_per_step(config), depths, strict=True)
    )


def train_flops_per_image(net: Network, spent: Spent, recompute: bool = False) -> float:
    """FLOPs of training on one image, 2·(forward + backward + recompute), averaged over the steps.

    The backward repeats every product once for the gradient of each of its two factors. Optimizer and
    average are not counted: they take a few FLOPs per parameter and step, and no product.
    """
    exits = spent.exits_read
    # Patches and time features need no gradient, which spares PdT′ + 256c. Distillation spares nothing: it
    # stops the gradient at the teacher's prediction, before any product.
    spared = 0 if net.masked else macs_embedding(net) + TIME_FEATURES * net.cond_width
    # torch stops repeating a block at the last tensor that the backward reads. If the block ends in
    # the MLP's second product, dmT, nothing reads its result, and it is not repeated.
    ends_in_product = net.block in ("pre_norm", "film") and net.dropout == 0
    unread = ends_in_product * net.width * net.mlp_width * net.trunk_tokens

    def macs(loops: int) -> int:
        repeated = recompute * net.depth_of(loops, exits) * (macs_layer(net) - unread)
        return 3 * macs_per_pass(net, loops, exits) - spared + repeated

    return 2 * sum(share * macs(loops) for loops, share in spent.depths.items())


def train_flops(config: Config) -> float:
    """FLOPs of training on one image under the configuration's supervision."""
    spent = config.supervision.spent(config.loops)
    return train_flops_per_image(network(config), spent, config.trainer.recompute)


def budget_flops(config: Config) -> float:
    """FLOPs of training a run to the end of its budget."""
    return train_flops(config) * config.images
