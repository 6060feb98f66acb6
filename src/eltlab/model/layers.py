"""Attention, MLP and the four kinds of block. Suffixes: B batch, T tokens, D width, C condition.

Every block has the signature ``block(x_BTD, cond)``. The stack computes ``cond`` by
``block.condition(c_BC)`` once per pass, because the condition vector is the same in every loop.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.config.network_shape import Network


class Attention(nn.Module):
    """Multi-head self-attention, with dropout on the attention probabilities as in BERT.

    With model.exclusive_attention, the token's own value is removed from its output (`exclude_own`).
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.heads = net.heads
        self.dropout = net.dropout
        self.exclusive = net.exclusive_attention
        self.qkv = nn.Linear(net.width, 3 * net.width)
        self.proj = nn.Linear(net.width, net.width)

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
    """XSA (arXiv 2603.09078): z_i = y_i − (y_i·v_i) v_i / ‖v_i‖² for every head and token.

    y, v: attention output and values, [B, heads, T, D / heads]. A value of zero leaves y unchanged.
    """
    # In float32, because a projection in bf16 would leave part of what it removes.
    own = F.normalize(v.float(), dim=-1)  # v / max(‖v‖, 1e-12)
    z = y - (y * own).sum(dim=-1, keepdim=True) * own
    return z.to(y.dtype)


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


class Block(nn.Module):
    """The base of all blocks. scale: factor of both residual branches (model.residual_scale)."""

    def __init__(self, net: Network, scale: float = 1.0) -> None:
        super().__init__()
        self.attention = Attention(net)
        self.mlp = MLP(net.width, net.mlp_width)
        self.drop = nn.Dropout(net.dropout)
        self.scale = scale

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        """The `cond` of a call, from the condition vector. None if the block is not modulated."""
        return None

    def branch(self, y_BTD: Tensor) -> Tensor:
        """Dropout and scale, applied to what a residual branch adds to the state."""
        y_BTD = self.drop(y_BTD)
        return y_BTD if self.scale == 1 else self.scale * y_BTD


class PostNorm(Block):
    """BERT's block, as in MaskGIT: x ← LN(x + attention(x)); x ← LN(x + MLP(x))."""

    def __init__(self, net: Network, scale: float = 1.0) -> None:
        super().__init__(net, scale)
        self.norm1 = nn.LayerNorm(net.width)
        self.norm2 = nn.LayerNorm(net.width)

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = self.norm1(x_BTD + self.branch(self.attention(x_BTD)))
        return self.norm2(x_BTD + self.branch(self.mlp(x_BTD)))


class PreNorm(PostNorm):
    """x ← x + attention(LN x); x ← x + MLP(LN x)."""

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        x_BTD = x_BTD + self.branch(self.attention(self.norm1(x_BTD)))
        return x_BTD + self.branch(self.mlp(self.norm2(x_BTD)))


class Modulated(Block):
    """A block whose `modulation` turns the condition vector into shifts, scales and gates."""

    modulation: nn.Linear

    def condition(self, c_BC: Tensor | None) -> Tensor | None:
        assert c_BC is not None, "a modulated block needs a condition vector"
        return self.modulation(F.silu(c_BC)).unsqueeze(1)  # [B, 1, …]: the same for every token


class AdaLN(Modulated):
    """DiT's adaLN-zero (arXiv 2212.09748): shift, scale and gate of both branches, zero at first."""

    def __init__(self, net: Network, scale: float = 1.0) -> None:
        super().__init__(net, scale)
        self.norm = nn.LayerNorm(net.width, elementwise_affine=False, eps=1e-6)
        self.modulation = ZeroLinear(net.cond_width, 6 * net.width)

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        shift1, scale1, gate1, shift2, scale2, gate2 = cond.chunk(6, dim=-1)
        attended = self.attention(self.norm(x_BTD) * (1 + scale1) + shift1)
        x_BTD = x_BTD + gate1 * self.branch(attended)
        fed = self.mlp(self.norm(x_BTD) * (1 + scale2) + shift2)
        return x_BTD + gate2 * self.branch(fed)


class Film(Modulated):
    """The paper's diffusion block: pre-norm, h = GELU(W₁·LN x)·(1 + s) + b, no gates.

    s and b come from the condition and are zero at first (our reading of the paper).
    """

    def __init__(self, net: Network, scale: float = 1.0) -> None:
        super().__init__(net, scale)
        self.norm1 = nn.LayerNorm(net.width)
        self.norm2 = nn.LayerNorm(net.width)
        self.modulation = ZeroLinear(net.cond_width, 2 * net.mlp_width)

    def forward(self, x_BTD: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        scale, shift = cond.chunk(2, dim=-1)
        x_BTD = x_BTD + self.branch(self.attention(self.norm1(x_BTD)))
        hidden = F.gelu(self.mlp.up(self.norm2(x_BTD))) * (1 + scale) + shift
        return x_BTD + self.branch(self.mlp.down(hidden))


BLOCKS: dict[str, type[Block]] = {"post_norm": PostNorm, "pre_norm": PreNorm, "adaln": AdaLN, "film": Film}


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero (see `initialise`)."""


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform matrices, zero biases, embeddings N(0, 0.02²). For `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
        if isinstance(module, ZeroLinear):
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight, generator=generator)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02, generator=generator)
