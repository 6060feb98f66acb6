"""What a network costs, in closed formulas: parameters, MACs and FLOPs. Pure Python, no torch.

1 MAC (multiply and add) = 2 FLOPs; the literature's "GFLOPs" of looped and diffusion transformers
are MACs (PAPER, What the counts mean). Counted are the matrix products, as torch's FlopCounterMode
does; norms, activations and softmax are not. Symbols: d width, m MLP width, T tokens in the trunk,
N unique layers, L loops, D = N·L, c condition width, K codes, P values in a patch.
"""

from dataclasses import dataclass

from eltlab.config import MODULATED_BLOCKS, Config
from eltlab.schedule import evaluations, loop_schedule

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

    @property
    def modulated(self) -> bool:
        return self.block in MODULATED_BLOCKS

    @property
    def trunk_tokens(self) -> int:
        """T: with the class token (masked) or the condition token (unmodulated diffusion) in front."""
        return self.tokens + (0 if self.modulated else 1)


def network(config: Config) -> Network:
    model, data = config.model, config.data
    assert model.block is not None and model.cond_width is not None and config.unique_layers
    return Network(
        masked=config.objective.name == "masked",
        block=model.block,
        width=model.width,
        mlp_width=model.mlp_width,
        cond_width=model.cond_width,
        unique_layers=config.unique_layers,
        tokens=data.tokens,
        patch_values=data.channels * data.patch**2,
        codes=data.codebook,
        classes=data.classes,
    )


# --- parameters -----------------------------------------------------------------------------------


def params_blocks(net: Network) -> int:
    """Parameters of the N unique layers.

    A layer: attention 4d² + 4d, MLP 2dm + d + m, two norms 4d; adaln has no norm gains but
    6d(c + 1) of modulation; film adds 2m(c + 1).
    """
    d, m, c = net.width, net.mlp_width, net.cond_width
    layer = 4 * d * d + 4 * d + 2 * d * m + d + m
    layer += {"adaln": 6 * d * (c + 1), "film": 4 * d + 2 * m * (c + 1)}.get(net.block, 4 * d)
    return net.unique_layers * layer


def params_total(net: Network) -> int:
    """All trained parameters: blocks, embeddings and head.

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
    return params_blocks(net) + embedding + head


# --- multiply-adds --------------------------------------------------------------------------------


def macs_per_pass(net: Network, loops: int) -> int:
    """MACs of one network evaluation of one sample with one read-out: trunk, input, condition, head.

    Trunk: N·L·(4d²T + 2dmT + 2T²d). The condition is computed once a pass, not once a loop.
    """
    d, t = net.width, net.trunk_tokens
    layer = 4 * d * d * t + 2 * d * net.mlp_width * t + 2 * t * t * d
    return net.unique_layers * loops * layer + macs_fixed(net) + macs_head(net)


def macs_fixed(net: Network) -> int:
    """MACs of a pass before the first loop: input projection and conditions (table look-ups are free)."""
    d, c = net.width, net.cond_width
    if net.masked:
        return 0
    modulation = {"adaln": 6 * d * c, "film": 2 * net.mlp_width * c}.get(net.block, 0)
    final = 2 * d * c if net.block == "adaln" else 0
    time = TIME_FEATURES * c + c * c
    return net.tokens * net.patch_values * d + time + net.unique_layers * modulation + final


def macs_head(net: Network) -> int:
    """MACs of reading one exit: masked T(d² + dK), diffusion TdP."""
    d = net.width
    return net.tokens * (d * d + d * net.codes if net.masked else d * net.patch_values)


def macs_per_sample(net: Network, config: Config, loops: int | list[int]) -> int:
    """MACs of drawing one sample: each step's loops times its evaluations (CFG runs two)."""
    sampler = config.sampler
    passes = evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)
    counts = loop_schedule(loops, sampler.steps)
    return sum(n * macs_per_pass(net, count) for n, count in zip(passes, counts, strict=True))


def train_flops_per_image(net: Network, loops: int, exits: int) -> int:
    """FLOPs of training on one image: forward, and twice that backward; every exit pays a head.

    The gradient to the network's input, which is not computed, is counted (it is the input
    projection once more, below 0.1 % of any network here).
    """
    forward = macs_per_pass(net, loops) + (exits - 1) * macs_head(net)
    return 2 * 3 * forward
