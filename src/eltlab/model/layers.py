"""Attention, MLP and the four kinds of block. Suffixes: B batch, T tokens, D width, C condition.

Every block has one signature, ``block(x_BTD, cond)``, and computes its own ``cond`` from the
condition vector by ``block.condition(c_BC)``: once a pass, because it is the same in every loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention; dropout on the attention probabilities, as in BERT."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.proj(y.transpose(1, 2).reshape(B, T, D))


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

    def __init__(
        self, width: int, heads: int, hidden: int, cond_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.mlp = MLP(width, hidden)
        self.drop = nn.Dropout(dropout)

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        """What `forward` takes as cond, from the condition vector. None for unmodulated blocks."""
        return None

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        raise NotImplementedError


class PostNorm(Block):
    """BERT's block, as in MaskGIT: x ← LN(x + attention(x)); x ← LN(x + MLP(x))."""

    def __init__(
        self, width: int, heads: int, hidden: int, cond_width: int, dropout: float
    ) -> None:
        super().__init__(width, heads, hidden, cond_width, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = self.norm1(x_BTD + self.drop(self.attention(x_BTD)))
        return self.norm2(x_BTD + self.drop(self.mlp(x_BTD)))


class PreNorm(PostNorm):
    """x ← x + attention(LN x); x ← x + MLP(LN x)."""

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.drop(self.attention(self.norm1(x_BTD)))
        return x_BTD + self.drop(self.mlp(self.norm2(x_BTD)))


class AdaLN(Block):
    """DiT's adaLN-zero (arXiv 2212.09748): shift, scale and gate of both branches, zero at the start."""

    modulated = True

    def __init__(
        self, width: int, heads: int, hidden: int, cond_width: int, dropout: float
    ) -> None:
        super().__init__(width, heads, hidden, cond_width, dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = ZeroLinear(cond_width, 6 * width)

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        assert c_BC is not None, "adaln needs a condition vector"
        return self.modulation(F.silu(c_BC)).unsqueeze(1)  # [B, 1, 6D]

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = cond.chunk(6, dim=-1)
        attended = self.attention(self.norm(x_BTD) * (1 + scale1) + shift1)
        x_BTD = x_BTD + gate1 * self.drop(attended)
        fed = self.mlp(self.norm(x_BTD) * (1 + scale2) + shift2)
        return x_BTD + gate2 * self.drop(fed)


class Film(Block):
    """The paper's diffusion block: pre-norm, h = GELU(W₁·LN x)·(1 + s) + b, no gates.

    s and b come from the condition, zero at the start (our reading of PAPER, Settings).
    """

    modulated = True

    def __init__(
        self, width: int, heads: int, hidden: int, cond_width: int, dropout: float
    ) -> None:
        super().__init__(width, heads, hidden, cond_width, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.modulation = ZeroLinear(cond_width, 2 * hidden)

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        assert c_BC is not None, "film needs a condition vector"
        return self.modulation(F.silu(c_BC)).unsqueeze(1)  # [B, 1, 2·hidden]

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        scale, shift = cond.chunk(2, dim=-1)
        x_BTD = x_BTD + self.drop(self.attention(self.norm1(x_BTD)))
        hidden = F.gelu(self.mlp.up(self.norm2(x_BTD))) * (1 + scale) + shift
        return x_BTD + self.drop(self.mlp.down(hidden))


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
