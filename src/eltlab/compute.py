"""What a network costs, in closed formulas: parameters, MACs and FLOPs. Pure Python, no torch.

1 MAC (multiply and add) = 2 FLOPs; the literature's "GFLOPs" of looped and diffusion transformers
are MACs (PAPER, What the counts mean). Counted are the matrix products, as torch's FlopCounterMode
does; norms, activations and softmax are not. Symbols: d width, m MLP width, T tokens in the trunk,
N unique layers, L loops, c condition width, K codes, P values in a patch. Layers of the prelude
and the coda are like looped ones. Exclusive attention and residual scaling add no matrix product.
"""

from dataclasses import dataclass

from eltlab.config import MODULATED_BLOCKS, Config
from eltlab.schedule import LoopSchedule, evaluations, loop_schedule

TIME_FEATURES = 256


@dataclass(frozen=True)
class Network:
    """The numbers that decide a backbone's cost; made from a Config by `network`."""

    masked: bool
    block: str
    width: int
    mlp_width: int
    cond_width: int
    unique_layers: int
    tokens: int  # of the image, without a token in front
    patch_values: int  # P = channels · patch²
    codes: int
    classes: int
    loops: int  # the trained count
    prelude: int  # layers
    coda: int  # layers
    loop_embedding: bool
    inject_input: bool

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


def network(config: Config) -> Network:
    model, data = config.model, config.data
    assert model.block is not None and model.cond_width is not None and config.unique_layers
    return Network(
        masked=config.objective.INPUTS == "tokens",
        block=model.block,
        width=model.width,
        mlp_width=model.mlp_width,
        cond_width=model.cond_width,
        unique_layers=config.unique_layers,
        tokens=data.tokens,
        patch_values=data.channels * data.patch**2,
        codes=data.codebook,
        classes=data.classes,
        loops=config.loops,
        prelude=model.prelude,
        coda=model.coda,
        loop_embedding=model.loop_embedding,
        inject_input=model.inject_input,
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


def params_total(net: Network) -> int:
    """All trained parameters: blocks, embeddings, head; the loop's Ld (embedding), d² + d (injection).

    Masked: codes and [MASK] (K + 1)d, labels (classes + 1)d, positions (T)d, a norm 2d; head
    d² + d, a norm 2d, bias K (the matrix is tied). Diffusion: patches Pd + d, time 256c + c² + 2c,
    labels (classes + 1)c; head dP + P and either 2d(c + 1) of modulation (adaln) or a norm 2d.
    """
    d, c, p = net.width, net.cond_width, net.patch_values
    if net.masked:
        embedding = (net.codes + 1 + net.classes + 1 + net.trunk_tokens + 2) * d
        head = d * d + 3 * d + net.codes
    else:
        embedding = p * d + d + TIME_FEATURES * c + c * c + 2 * c + (net.classes + 1) * c
        head = d * p + p + (2 * d * (c + 1) if net.block == "adaln" else 2 * d)
    loop = net.loop_embedding * net.loops * d + net.inject_input * (d * d + d)
    return params_blocks(net) + embedding + loop + head


# --- multiply-adds --------------------------------------------------------------------------------


def macs_per_pass(net: Network, loops: float) -> float:
    """MACs of one network evaluation of one sample with one read-out; whole for a whole loop count.

    loops may be a mean over passes: all is linear in it but the injection, d²T in the passes of more
    than one loop. A mean does not tell their share; taken is the most it can be, min(loops − 1, 1).
    """
    d, t = net.width, net.trunk_tokens
    injection = net.inject_input * d * d * t * min(loops - 1, 1)
    looped = net.unique_layers * loops * macs_layer(net)
    return macs_fixed(net) + looped + injection + macs_readout(net)


def macs_layer(net: Network) -> int:
    """MACs of one layer: 4d²T + 2dmT + 2T²d. Its condition is computed once a pass (macs_fixed)."""
    d, t = net.width, net.trunk_tokens
    return 4 * d * d * t + 2 * d * net.mlp_width * t + 2 * t * t * d


def macs_fixed(net: Network) -> int:
    """MACs of a pass whatever its loops and exits: input, prelude, the conditions of all layers.

    Table look-ups are free.
    """
    d, c = net.width, net.cond_width
    prelude = net.prelude * macs_layer(net)
    if net.masked:
        return prelude
    modulation = {"adaln": 6 * d * c, "film": 2 * net.mlp_width * c}.get(net.block, 0)
    final = 2 * d * c if net.block == "adaln" else 0
    time = TIME_FEATURES * c + c * c
    embedding = net.tokens * net.patch_values * d
    return prelude + embedding + time + net.layers * modulation + final


def macs_readout(net: Network) -> int:
    """MACs of reading one exit: its state through the coda, and the head."""
    return net.coda * macs_layer(net) + macs_head(net)


def macs_head(net: Network) -> int:
    """MACs of the head: masked T(d² + dK), diffusion TdP."""
    d = net.width
    return net.tokens * (d * d + d * net.codes if net.masked else d * net.patch_values)


def macs_per_sample(net: Network, config: Config, loops: LoopSchedule | list[float]) -> float:
    """MACs of drawing one sample: each step's loops times its evaluations (CFG runs two).

    loops: as in `loop_schedule`, or the mean loops that passes ran at each step (where they halt).
    """
    sampler = config.sampler
    passes = evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)
    counts = loops if isinstance(loops, list) else loop_schedule(loops, sampler.steps)
    return sum(n * macs_per_pass(net, count) for n, count in zip(passes, counts, strict=True))


def train_flops_per_image(net: Network, loops: float, readouts: int) -> float:
    """FLOPs of training on one image: forward, and twice that backward (see SupervisionConfig.spent).

    loops: of a pass, or their mean over the steps. The gradient to the network's input, which is
    not computed, is counted (it is the input projection once more, below 0.1 % of any network here).
    """
    forward = macs_per_pass(net, loops) + (readouts - 1) * macs_readout(net)
    return 2 * 3 * forward


def train_flops(config: Config) -> float:
    """FLOPs of training on one image under the configuration's supervision."""
    spent = config.supervision.spent(config.loops)
    return train_flops_per_image(network(config), spent.loops, spent.readouts)
