"""TokenBackbone for masked tokens, PatchBackbone for images and clips: input → LoopedStack → shared head."""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.common.seeds import generator
from eltlab.config.network_shape import TIME_FEATURES, Network, network
from eltlab.config.schema import Config
from eltlab.model.layers import ZeroLinear, initialise
from eltlab.model.loop import PassOutput, build_stack
from eltlab.model.patches import Patches, patches_of


class TokenBackbone(nn.Module):
    """BERT as in MaskGIT: tokens, learned positions, the class as a token in front, a tied head.

    Token id K = net.codes is [MASK]; it can be read but never predicted. Label net.classes is the null
    label of classifier-free guidance.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.codes = net.codes
        self.token = nn.Embedding(net.codes + 1, net.width)
        self.label = nn.Embedding(net.classes + 1, net.width)
        self.position = nn.Embedding(net.tokens + 1, net.width)
        self.norm = nn.LayerNorm(net.width)
        self.drop = nn.Dropout(net.dropout)
        self.stack = build_stack(net)
        # The state of pre_norm is a sum that grows from loop to loop: a norm lets one head read every exit.
        # post_norm ends in a norm (BERT has no other one here).
        self.norm_before_head = nn.LayerNorm(net.width) if net.final_norm else nn.Identity()
        self.head = nn.Linear(net.width, net.width)
        self.head_norm = nn.LayerNorm(net.width)
        self.head_bias = nn.Parameter(torch.zeros(net.codes))

    def forward(self, ids_BT: Tensor, *, labels_B: Tensor, **options: Any) -> PassOutput:
        """Logits [B, T, K] at each exit, for ids in 0…K (K = [MASK]).

        options: exits, track and halt, see LoopedStack.forward.
        """
        x_BTD = torch.cat([self.label(labels_B).unsqueeze(1), self.token(ids_BT)], dim=1)
        x_BTD = self.drop(self.norm(x_BTD + self.position.weight))
        done = self.stack(x_BTD, None, **options)
        return done._replace(exits={n: self.read(state) for n, state in done.exits.items()})

    def read(self, x_BTD: Tensor) -> Tensor:
        """The head: Dense → GELU → LN → Eᵀ + bias over the K codes; [MASK] cannot be emitted."""
        h_BTD = self.head_norm(F.gelu(self.head(self.norm_before_head(x_BTD[:, 1:]))))
        return F.linear(h_BTD, self.token.weight[: self.codes], self.head_bias)


class PatchBackbone(nn.Module):
    """As in DiT: patches, fixed sine-cosine positions, time + class as a condition vector.

    Modulated blocks (adaln, film) get the condition as a vector, other blocks as a token in front. Label
    net.classes is the null label of classifier-free guidance.
    """

    def __init__(self, net: Network, patches: Patches) -> None:
        super().__init__()
        width, cond_width = net.width, net.cond_width
        self.patches = patches
        self.modulated = net.modulated
        self.input = nn.Linear(patches.values, width)
        # Not persistent: it is computed from the shape, so checkpoints need not hold it.
        self.register_buffer("position", sincos(patches.grid, width), persistent=False)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width)
        )
        self.label = nn.Embedding(net.classes + 1, cond_width)
        self.stack = build_stack(net)
        # adaLN also modulates the final norm (DiT). With other blocks the norm has a gain and a bias.
        adaptive = net.block == "adaln"
        self.head_norm = nn.LayerNorm(width, elementwise_affine=not adaptive, eps=1e-6)
        self.head_modulation = ZeroLinear(cond_width, 2 * width) if adaptive else None
        self.head = ZeroLinear(width, patches.values)

    def forward(self, x: Tensor, time_B: Tensor, *, labels_B: Tensor, **options: Any) -> PassOutput:
        """Predictions at each exit, shaped like x: [B, C, H, W] or [B, F, C, H, W].

        time_B: in [0, 1]; 1 is pure noise. options: exits, track and halt, see LoopedStack.forward.
        """
        x_BTD = self.input(self.patches.cut(x)) + self.position
        # Times in [0, 1] are scaled to DiT's range of 1,000 steps, which its wavelengths are made for.
        c_BC = self.time(sinusoid(1000 * time_B, TIME_FEATURES)) + self.label(labels_B)
        if not self.modulated:
            x_BTD = torch.cat([c_BC.unsqueeze(1), x_BTD], dim=1)
        modulation = None
        if self.head_modulation is not None:
            modulation = self.head_modulation(F.silu(c_BC)).unsqueeze(1)
        done = self.stack(x_BTD, c_BC, **options)
        return done._replace(exits={n: self.read(x, modulation) for n, x in done.exits.items()})

    def read(self, x_BTD: Tensor, modulation: Tensor | None) -> Tensor:
        """The head: LN → linear → image, with DiT's final modulation if the blocks are adaLN's."""
        x_BTD = self.head_norm(x_BTD if self.modulated else x_BTD[:, 1:])
        if modulation is not None:
            shift, scale = modulation.chunk(2, dim=-1)
            x_BTD = x_BTD * (1 + scale) + shift
        return self.patches.join(self.head(x_BTD))


def build_backbone(config: Config) -> nn.Module:
    """The network of a configuration. Its initial weights are a function of the seed."""
    net = network(config)
    # torch initialises each module as it is built. Those draws are overwritten below, and must not
    # advance the global generator.
    with torch.random.fork_rng(devices=[]):
        backbone = TokenBackbone(net) if net.masked else PatchBackbone(net, patches_of(config.data))
    initialise_backbone(backbone, generator(config.seed, "weights"))
    return backbone


def initialise_backbone(backbone: nn.Module, generator: torch.Generator) -> None:
    """Draws every initial weight from the generator, in the order in which modules are registered."""
    backbone.apply(partial(initialise, generator=generator))


def sinusoid(position_N: Tensor, features: int) -> Tensor:
    """Sine-cosine features [N, features] of positions [N], with wavelengths 2π…2π·10⁴ (as in DiT)."""
    half = features // 2
    steps = torch.arange(half, dtype=torch.float32, device=position_N.device)
    angles = position_N.float()[:, None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed positions [t·h·w, width] of a grid (t, h, w), as in DiT.

    Images encode the row and the column in half of the width each, clips the frame, the row and the
    column in about a third each.
    """
    places = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    widths = [0, width // 2, width - width // 2]
    if grid[0] > 1:
        third = 2 * (width // 6)  # even, because each position is a sine and a cosine
        widths = [width - 2 * third, third, third]
    parts = [sinusoid(place.flatten(), part) for place, part in zip(places, widths, strict=True)]
    return torch.cat(parts, dim=-1)
