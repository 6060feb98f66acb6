"""What a network costs, in closed formulas: parameters, MACs and FLOPs. Pure Python, no torch.

1 MAC (multiply and add) = 2 FLOPs; the literature's "GFLOPs" of looped and diffusion transformers
are MACs (PAPER, What the counts mean). Counted are the matrix products, as torch's FlopCounterMode
does; norms, activations and softmax are not. Symbols: d width, m MLP width, T tokens in the trunk,
N unique layers, L loops, D effective depth, c condition width, K codes, P values in a patch, n exits
that are read. Layers of the prelude and the coda are like looped ones. Exclusive attention and
residual scaling add no matrix product. Bytes: `memory.py`; all of a configuration: `bill.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eltlab.config.depths import DepthDistribution
from eltlab.config.schedules import LoopSchedule, evaluations, loop_schedule
from eltlab.config.schema import MODULATED_BLOCKS, Config, Spent

TIME_FEATURES = 256


@dataclass(frozen=True)
class Network:
    """The numbers that decide a backbone's cost; made from a Config by `network`."""

    masked: bool
    block: str
    width: int
    heads: int
    mlp_width: int
    cond_width: int
    unique_layers: int
    tokens: int  # of the image or clip, without a token in front
    patch_values: int  # P = channels · patch² · frame_patch
    codes: int
    classes: int
    loops: int  # the trained count
    dropout: float
    prelude: int  # layers
    coda: int  # layers
    loop_embedding: bool
    inject_input: bool
    exclusive_attention: bool

    @property
    def modulated(self) -> bool:
        return self.block in MODULATED_BLOCKS

    @property
    def layers(self) -> int:
        """Layers with weights of their own."""
        return self.prelude + self.unique_layers + self.coda

    @property
    def trunk_tokens(self) -> int:
        """T: with the class token (masked) or the condition token (unmodulated diffusion) in front."""
        return self.tokens + (0 if self.modulated else 1)

    def depth(self, loops: int, exits_read: int = 1) -> int:
        """D: layers that a pass of these loops runs; the coda runs once for every exit that is read."""
        return self.prelude + self.unique_layers * loops + self.coda * exits_read


def network(config: Config) -> Network:
    model, data = config.model, config.data
    assert model.block is not None and model.cond_width is not None and config.unique_layers
    assert model.dropout is not None
    return Network(
        masked=config.objective.INPUTS == "tokens",
        block=model.block,
        width=model.width,
        heads=model.heads,
        mlp_width=model.mlp_width,
        cond_width=model.cond_width,
        unique_layers=config.unique_layers,
        tokens=data.tokens,
        patch_values=data.patch_values,
        codes=data.codebook,
        classes=data.classes,
        loops=config.loops,
        dropout=model.dropout,
        prelude=model.prelude,
        coda=model.coda,
        loop_embedding=model.loop_embedding,
        inject_input=model.inject_input,
        exclusive_attention=model.exclusive_attention,
    )


# --- parameters -----------------------------------------------------------------------------------


def params_blocks(net: Network) -> int:
    """Parameters of the unique layers: prelude, N looped ones, coda.

    A layer: attention 4d² + 4d, MLP 2dm + d + m, two norms 4d; adaln has no norm gains but
    6d(c + 1) of modulation; film adds 2m(c + 1).
    """
    d, m, c = net.width, net.mlp_width, net.cond_width
    layer = 4 * d * d + 4 * d + 2 * d * m + d + m
    layer += {"adaln": 6 * d * (c + 1), "film": 4 * d + 2 * m * (c + 1)}.get(net.block, 4 * d)
    return net.layers * layer


def params_embedding(net: Network) -> int:
    """Parameters before the blocks, and what tells a loop its number and its input.

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

    Masked: d² + d, a norm 2d, bias K (the matrix is the embedding's). Diffusion: dP + P and either
    2d(c + 1) of modulation (adaln) or a norm 2d.
    """
    d, p = net.width, net.patch_values
    if net.masked:
        return d * d + 3 * d + net.codes
    return d * p + p + (2 * d * (net.cond_width + 1) if net.block == "adaln" else 2 * d)


def params_total(net: Network) -> int:
    """All trained parameters."""
    return params_blocks(net) + params_embedding(net) + params_head(net)


# --- multiply-adds of a pass ----------------------------------------------------------------------


def macs_per_pass(net: Network, loops: int, exits_read: int = 1) -> int:
    """MACs of one network evaluation of one sample: trunk, embedding, conditions, injection, heads.

    The injection is one product, d²T, in every pass of more than one loop.
    """
    injection = net.inject_input * (loops > 1) * net.width**2 * net.trunk_tokens
    outside = macs_embedding(net) + macs_condition(net) + injection
    return macs_trunk(net, loops, exits_read) + outside + exits_read * macs_head(net)


def macs_trunk(net: Network, loops: int, exits_read: int = 1) -> int:
    """MACs of the layers alone: D·(4d²T + 2dmT + 2T²d), with m = 4d the field's D·(12d²T + 2T²d)."""
    return net.depth(loops, exits_read) * macs_layer(net)


def macs_attention(net: Network, loops: int, exits_read: int = 1) -> int:
    """The part of the trunk that grows with T²: queries on keys and weights on values, D·2T²d."""
    return net.depth(loops, exits_read) * 2 * net.trunk_tokens**2 * net.width


def macs_layer(net: Network) -> int:
    """MACs of one layer: 4d²T + 2dmT + 2T²d. Its condition is computed once a pass."""
    d, t = net.width, net.trunk_tokens
    return 4 * d * d * t + 2 * d * net.mlp_width * t + 2 * t * t * d


def macs_embedding(net: Network) -> int:
    """MACs of the input: patches PdT′ of the T′ tokens of the image; the look-up of tokens is free."""
    return 0 if net.masked else net.tokens * net.patch_values * net.width


def macs_condition(net: Network) -> int:
    """MACs of the conditions, once a pass: time 256c + c², modulation of every unique layer (adaln
    6dc, film 2mc) and of adaln's head 2dc. Masked nets have a class token instead, by look-up."""
    if net.masked:
        return 0
    d, c = net.width, net.cond_width
    layer = {"adaln": 6 * d * c, "film": 2 * net.mlp_width * c}.get(net.block, 0)
    head = 2 * d * c if net.block == "adaln" else 0
    return TIME_FEATURES * c + c * c + net.layers * layer + head


def macs_head(net: Network) -> int:
    """MACs of the head: masked T′(d² + dK), diffusion T′dP, for the T′ tokens of the image."""
    d = net.width
    return net.tokens * (d * d + d * net.codes if net.masked else d * net.patch_values)


# --- of a sample ----------------------------------------------------------------------------------


def requested_depths(loops: LoopSchedule, steps: int) -> list[DepthDistribution]:
    """What a loop schedule spends at each step where no pass halts."""
    return [{count: 1.0} for count in loop_schedule(loops, steps)]


def evaluations_per_step(config: Config) -> list[int]:
    """Network evaluations of one sample at each sampling step; their sum is the NFE."""
    sampler = config.sampler
    passes = evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)
    return [guided * stages for guided, stages in zip(passes, sampler.stages, strict=True)]


def cost_per_sample(
    config: Config, spent: Sequence[DepthDistribution], of_pass: Callable[[int], int]
) -> float:
    """What one sample takes: of_pass(loops), e.g. its MACs, over all its passes (CFG runs two a step).

    spent: the share of passes at each loop count, for each step; see `asked_depths`.
    """
    steps = zip(evaluations_per_step(config), spent, strict=True)
    return sum(
        passes * sum(share * of_pass(loops) for loops, share in depths.items())
        for passes, depths in steps
    )


# --- of training ----------------------------------------------------------------------------------


def macs_backward(net: Network, loops: int, exits_read: int) -> int:
    """MACs of the backward of a pass with these exits: each product once for either factor's gradient.

    Patches and time features need no gradient: the products that would give it, PdT′ + 256c, are not
    made. Distillation stops the gradient at the teacher's prediction, before any product.
    """
    spared = 0 if net.masked else macs_embedding(net) + TIME_FEATURES * net.cond_width
    return 2 * macs_per_pass(net, loops, exits_read) - spared


def macs_recompute(net: Network, loops: int, exits_read: int) -> int:
    """MACs that trainer.recompute adds: the forward of every layer once more.

    torch stops repeating a block at the last tensor that its backward reads: where a block ends in
    the MLP's second product (pre_norm and film without dropout), dmT, that is not made again.
    """
    ends_in_product = net.block in ("pre_norm", "film") and net.dropout == 0
    unread = ends_in_product * net.width * net.mlp_width * net.trunk_tokens
    return net.depth(loops, exits_read) * (macs_layer(net) - unread)


def train_flops_per_image(net: Network, spent: Spent, recompute: bool = False) -> float:
    """FLOPs of training on one image, 2·(forward + backward + recompute), a mean over the steps.

    The optimizer's and the average's work, a few FLOPs a parameter and step, is not a product.
    """

    def macs(loops: int) -> int:
        again = macs_recompute(net, loops, spent.exits_read) if recompute else 0
        forward = macs_per_pass(net, loops, spent.exits_read)
        return forward + macs_backward(net, loops, spent.exits_read) + again

    return 2 * sum(share * macs(loops) for loops, share in spent.depths.items())


def train_flops(config: Config) -> float:
    """FLOPs of training on one image under the configuration's supervision."""
    spent = config.supervision.spent(config.loops)
    return train_flops_per_image(network(config), spent, config.trainer.recompute)


def budget_flops(config: Config) -> float:
    """FLOPs of training a run to the end of its budget."""
    return train_flops(config) * config.images
