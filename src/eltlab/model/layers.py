"""Attention, MLP and the four kinds of block. Suffixes: B batch, T tokens, D width, C condition.

Every block has one signature, ``block(x_BTD, cond)``, and computes its own ``cond`` from the
condition vector by ``block.condition(c_BC)``: once a pass, because it is the same in every loop.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(NamedTuple):
    """The numbers that a block of any kind is built from."""

    width: int
    heads: int
    hidden: int  # width of the MLP's hidden layer
    cond_width: int
    dropout: float
    exclusive: bool = False  # attention without each token's own value
    scale: float = 1.0  # what both residual branches are multiplied by


class Attention(nn.Module):
    """Multi-head self-attention; dropout on the attention probabilities, as in BERT.

    exclusive: XSA (arXiv 2603.09078), the output without the token's own value (`exclude_own`).
    """

    def __init__(self, width: int, heads: int, dropout: float, exclusive: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.exclusive = exclusive
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        if self.exclusive:
            y = exclude_own(y, v)
        return self.proj(y.transpose(1, 2).reshape(B, T, D))


def exclude_own(y: Tensor, v: Tensor) -> Tensor:
    """z_i = y_i − (y_i·v_i) v_i / ‖v_i‖² for every head and token (arXiv 2603.09078); v_i = 0 leaves y_i.

    y, v: attention output and values, [B, heads, T, D / heads]. Computed in float32: a projection
    in bf16 would leave a part of what it removes.
    """
    own = F.normalize(v.float(), dim=-1)  # v / max(‖v‖, 1e-12)
    z = y - (y * own).sum(dim=-1, keepdim=True) * own  # float32, as own is
    return z.to(y.dtype)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


class Block(nn.Module):
    """What the kinds of block share: attention, MLP, dropout and no condition."""

    modulated = False

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.attention = Attention(layer.width, layer.heads, layer.dropout, layer.exclusive)
        self.mlp = MLP(layer.width, layer.hidden)
        self.drop = nn.Dropout(layer.dropout)
        self.scale = layer.scale

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        """What `forward` takes as cond, from the condition vector. None for unmodulated blocks."""
        return None

    def branch(self, y_BTD: Tensor) -> Tensor:
        """What a residual branch adds to the state."""
        y_BTD = self.drop(y_BTD)
        return y_BTD if self.scale == 1 else self.scale * y_BTD

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        raise NotImplementedError


class PostNorm(Block):
    """BERT's block, as in MaskGIT: x ← LN(x + attention(x)); x ← LN(x + MLP(x))."""

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.norm1 = nn.LayerNorm(layer.width)
        self.norm2 = nn.LayerNorm(layer.width)

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = self.norm1(x_BTD + self.branch(self.attention(x_BTD)))
        return self.norm2(x_BTD + self.branch(self.mlp(x_BTD)))


class PreNorm(PostNorm):
    """x ← x + attention(LN x); x ← x + MLP(LN x)."""

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.branch(self.attention(self.norm1(x_BTD)))
        return x_BTD + self.branch(self.mlp(self.norm2(x_BTD)))


class AdaLN(Block):
    """DiT's adaLN-zero (arXiv 2212.09748): shift, scale and gate of both branches, zero at the start."""

    modulated = True

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.norm = nn.LayerNorm(layer.width, elementwise_affine=False, eps=1e-6)
        self.modulation = ZeroLinear(layer.cond_width, 6 * layer.width)

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        assert c_BC is not None, "adaln needs a condition vector"
        return self.modulation(F.silu(c_BC)).unsqueeze(1)  # [B, 1, 6D]

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = cond.chunk(6, dim=-1)
        attended = self.attention(self.norm(x_BTD) * (1 + scale1) + shift1)
        x_BTD = x_BTD + gate1 * self.branch(attended)
        fed = self.mlp(self.norm(x_BTD) * (1 + scale2) + shift2)
        return x_BTD + gate2 * self.branch(fed)


class Film(Block):
    """The paper's diffusion block: pre-norm, h = GELU(W₁·LN x)·(1 + s) + b, no gates.

    s and b come from the condition, zero at the start (our reading of PAPER, Settings).
    """

    modulated = True

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer)
        self.norm1 = nn.LayerNorm(layer.width)
        self.norm2 = nn.LayerNorm(layer.width)
        self.modulation = ZeroLinear(layer.cond_width, 2 * layer.hidden)

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        assert c_BC is not None, "film needs a condition vector"
        return self.modulation(F.silu(c_BC)).unsqueeze(1)  # [B, 1, 2·hidden]

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        scale, shift = cond.chunk(2, dim=-1)
        x_BTD = x_BTD + self.branch(self.attention(self.norm1(x_BTD)))
        hidden = F.gelu(self.mlp.up(self.norm2(x_BTD))) * (1 + scale) + shift
        return x_BTD + self.branch(self.mlp.down(hidden))


BLOCKS: dict[str, type[Block]] = {
    "post_norm": PostNorm,
    "pre_norm": PreNorm,
    "adaln": AdaLN,
    "film": Film,
}


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero (see `initialise`)."""


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform matrices, zero biases, embeddings N(0, 0.02²); to be `apply`-ed in order."""
    if isinstance(module, ZeroLinear):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight, generator=generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02, generator=generator)
