"""TokenBackbone for masked tokens, PatchBackbone for images and clips: input → LoopedStack → shared head."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.model.layers import BLOCKS, AdaLN, Block, Layer, ZeroLinear, initialise
from eltlab.model.loop import LoopedStack
from eltlab.model.patches import Patches

TIME_FEATURES = 256  # sinusoidal features of the time, as in DiT


class Pass(NamedTuple):
    """What one pass gives: the head's reading of each asked exit, and the relative updates."""

    exits: dict[int, Tensor]
    updates: Tensor | None
    loops: int  # that ran: max(exits), unless the pass halted before


class Anatomy(NamedTuple):
    """What neighbouring work adds to the plain loop; see LoopedStack, Block and Attention."""

    prelude: int = 0  # layers
    coda: int = 0  # layers
    loop_embedding: bool = False
    inject_input: bool = False
    residual_scale: bool = False
    exclusive_attention: bool = False


PLAIN = Anatomy()


def looped_stack(
    block: str,
    unique_layers: int,
    width: int,
    heads: int,
    mlp_width: int,
    cond_width: int,
    dropout: float,
    loops: int = 1,
    anatomy: Anatomy = PLAIN,
) -> LoopedStack:
    """N = unique_layers looped blocks of one kind, and the anatomy around them.

    loops is the trained count L: as many rows has the loop embedding, and 1/(N·√L) scales both
    residual branches of the looped blocks (arXiv 2606.18524; prelude and coda keep theirs).
    """
    layer = Layer(width, heads, mlp_width, cond_width, dropout, anatomy.exclusive_attention)
    scale = 1 / (unique_layers * math.sqrt(loops)) if anatomy.residual_scale else 1.0

    def layers(count: int, scale: float = 1.0) -> list[Block]:
        return [BLOCKS[block](layer._replace(scale=scale)) for _ in range(count)]

    return LoopedStack(
        layers(unique_layers, scale),
        prelude=layers(anatomy.prelude),
        coda=layers(anatomy.coda),
        loop_embedding=nn.Parameter(torch.zeros(loops, width)) if anatomy.loop_embedding else None,
        injection=ZeroLinear(width, width) if anatomy.inject_input else None,
    )


class TokenBackbone(nn.Module):
    """BERT as in MaskGIT: tokens, learned positions, the class as a token in front, a tied head.

    Args:
        codes: size of the codebook K; id K is [MASK] and has no logit.
        classes: number of labels; label `classes` is the null label of CFG.
        tokens: tokens a sample (without the class token).
        stack: the looped blocks, of width `width`.
    """

    def __init__(
        self, codes: int, classes: int, tokens: int, width: int, dropout: float, stack: LoopedStack
    ) -> None:
        super().__init__()
        self.codes = codes
        self.token = nn.Embedding(codes + 1, width)
        self.label = nn.Embedding(classes + 1, width)
        self.position = nn.Embedding(tokens + 1, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.stack = stack
        self.head = nn.Linear(width, width)
        self.head_norm = nn.LayerNorm(width)
        self.head_bias = nn.Parameter(torch.zeros(codes))

    def forward(
        self,
        ids_BT: Tensor,
        *,
        labels_B: Tensor,
        exits: Sequence[int],
        track: bool = False,
        halt: float | None = None,
    ) -> Pass:
        """Logits [B, T, K] at each exit, for ids in 0…K (K = [MASK]).

        track, halt: as in LoopedStack.
        """
        x_BTD = torch.cat([self.label(labels_B).unsqueeze(1), self.token(ids_BT)], dim=1)
        x_BTD = self.drop(self.norm(x_BTD + self.position.weight))
        states, updates, loops = self.stack(x_BTD, None, exits, track, halt)
        return Pass({n: self.read(state) for n, state in states.items()}, updates, loops)

    def read(self, x_BTD: Tensor) -> Tensor:
        """The head: Dense → GELU → LN → Eᵀ + bias over the K codes; [MASK] cannot be emitted."""
        h_BTD = self.head_norm(F.gelu(self.head(x_BTD[:, 1:])))
        return F.linear(h_BTD, self.token.weight[: self.codes], self.head_bias)


class PatchBackbone(nn.Module):
    """DiT's frame: patches, fixed sine-cosine positions, time + class as a condition vector.

    Blocks that are not modulated (post_norm, pre_norm) get the condition as a token in front.

    Args:
        patches: of the images [C, H, W] or clips [F, C, H, W].
        classes: number of labels; label `classes` is the null label of CFG.
        stack: the looped blocks, of width `width`.
    """

    def __init__(
        self, patches: Patches, classes: int, width: int, cond_width: int, stack: LoopedStack
    ) -> None:
        super().__init__()
        self.patches = patches
        self.modulated = stack.blocks[0].modulated
        self.input = nn.Linear(patches.values, width)
        self.register_buffer("position", sincos(patches.grid, width), persistent=False)
        self.time = nn.Sequential(
            nn.Linear(TIME_FEATURES, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width)
        )
        self.label = nn.Embedding(classes + 1, cond_width)
        self.stack = stack
        # adaLN modulates the final norm too (DiT); elsewhere the norm has its own gain and bias.
        self.adaptive_head = isinstance(stack.blocks[0], AdaLN)
        self.head_norm = nn.LayerNorm(width, elementwise_affine=not self.adaptive_head, eps=1e-6)
        self.head_modulation = ZeroLinear(cond_width, 2 * width) if self.adaptive_head else None
        self.head = ZeroLinear(width, patches.values)

    def forward(
        self,
        x: Tensor,
        time_B: Tensor,
        *,
        labels_B: Tensor,
        exits: Sequence[int],
        track: bool = False,
        halt: float | None = None,
    ) -> Pass:
        """Predictions at each exit, of the shape of x: [B, C, H, W] or [B, F, C, H, W]. time_B lies in
        [0, 1], 1 being pure noise.

        track, halt: as in LoopedStack.
        """
        x_BTD = self.input(self.patches.cut(x)) + self.position
        c_BC = self.time(sinusoid(1000 * time_B, TIME_FEATURES)) + self.label(labels_B)
        if not self.modulated:
            x_BTD = torch.cat([c_BC.unsqueeze(1), x_BTD], dim=1)
        modulation = None
        if self.head_modulation is not None:
            modulation = self.head_modulation(F.silu(c_BC)).unsqueeze(1)
        states, updates, loops = self.stack(x_BTD, c_BC, exits, track, halt)
        read = {n: self.read(state, modulation) for n, state in states.items()}
        return Pass(read, updates, loops)

    def read(self, x_BTD: Tensor, modulation: Tensor | None) -> Tensor:
        """The head: LN → linear → image, with DiT's final modulation where the blocks have it."""
        x_BTD = self.head_norm(x_BTD if self.modulated else x_BTD[:, 1:])
        if modulation is not None:
            shift, scale = modulation.chunk(2, dim=-1)
            x_BTD = x_BTD * (1 + scale) + shift
        return self.patches.join(self.head(x_BTD))


def initialise_backbone(backbone: nn.Module, generator: torch.Generator) -> None:
    """Draws every initial weight from the generator, in the order of the modules."""
    backbone.apply(partial(initialise, generator=generator))


def sinusoid(position_N: Tensor, features: int) -> Tensor:
    """Sine-cosine features [N, features] of positions [N], wavelengths 2π…2π·10⁴ (as in DiT)."""
    half = features // 2
    steps = torch.arange(half, dtype=torch.float32, device=position_N.device)
    angles = position_N.float()[:, None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos(grid: tuple[int, int, int], width: int) -> Tensor:
    """Fixed positions [t·h·w, width]: a part of the width for the frame, one for the row and one for the
    column; of an image one half for each of the two (as in DiT)."""
    places = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    widths = [0, width // 2, width - width // 2]
    if grid[0] > 1:
        third = 2 * (width // 6)  # a sine and a cosine each
        widths = [width - 2 * third, third, third]
    parts = [sinusoid(place.flatten(), part) for place, part in zip(places, widths, strict=True)]
    return torch.cat(parts, dim=-1)
