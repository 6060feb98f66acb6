"""The layers of each block: attention, exclusive attention, modulation."""

import pytest
import torch
import torch.nn.functional as F
from support.backbones import WIDTH, make
from support.stacks import ANATOMY_LAYERS, blocks, stack_of
from support.tiny_run import tiny

from eltlab.model.backbone import build_backbone
from eltlab.model.layers import Attention, exclude_own


def test_attention_is_softmax_attention_over_heads():
    attention = make("token", "post_norm").stack.blocks[0].attention
    x = torch.randn(2, 5, WIDTH)
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


def test_attention_drops_probabilities_in_training_only():
    torch.manual_seed(0)
    attention = make("token", "post_norm", dropout=0.5).stack.blocks[0].attention
    x = torch.randn(2, 5, WIDTH)
    assert not torch.equal(attention.train()(x), attention(x))
    assert torch.equal(attention.eval()(x), attention(x))


def test_film_scales_and_shifts_the_hidden_layer():
    """PAPER, Settings: h = GELU(W₁·LN x)·(1 + s) + b, pre-norm, no gates."""
    layer = make("patch", "film").stack.blocks[0]
    x, condition = torch.randn(2, 5, WIDTH), torch.randn(2, 12)
    scale, shift = layer.modulation(F.silu(condition))[:, None].split(24, dim=-1)
    x1 = x + layer.attention(layer.norm1(x))
    hidden = F.gelu(layer.mlp.up(layer.norm2(x1))) * (1 + scale) + shift
    expected = x1 + layer.mlp.down(hidden)
    torch.testing.assert_close(layer(x, layer.condition(condition)), expected)


@blocks
def test_exclusive_attention_is_orthogonal_to_each_tokens_own_value(block):
    stack, x, c = stack_of(block)
    kept = {}

    def keep(name, what):
        return lambda _, given, got: kept.setdefault(name, {}).update({what: (given[0], got)})

    attentions = {name: layer for name, layer in stack.named_modules() if isinstance(layer, Attention)}
    assert len(attentions) == ANATOMY_LAYERS + 3  # prelude and coda too
    for name, layer in attentions.items():
        layer.qkv.register_forward_hook(keep(name, "qkv"))
        layer.proj.register_forward_hook(keep(name, "proj"))
    stack(x, c, (1,))
    for name in attentions:
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2) for part in kept[name]["qkv"][1].chunk(3, dim=-1)
        )
        y = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
        z = kept[name]["proj"][0].unflatten(-1, (2, 8)).transpose(1, 2)
        along = (y * v).sum(-1, keepdim=True)
        assert along.abs().max() > 0.01  # there was something to remove
        assert (z * v).sum(-1).abs().max() < 1e-5
        torch.testing.assert_close(z, y - along * v / v.square().sum(-1, keepdim=True))


def test_a_value_of_zero_excludes_nothing():
    y = torch.randn(2, 2, 5, 4, requires_grad=True)
    v = torch.randn(2, 2, 5, 4)
    v[0, 1, 3] = 0
    v.requires_grad_()
    z = exclude_own(y, v)
    assert torch.equal(z[0, 1, 3], y[0, 1, 3])
    z.square().sum().backward()
    assert v.grad.isfinite().all() and y.grad.isfinite().all()


def test_exclusion_is_computed_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    y, v = torch.randn(2, 1, 2, 50, 32, generator=generator).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = exclude_own(y, v)
    assert z.dtype == torch.bfloat16
    y, v = y.double(), v.double()
    expected = y - (y * v).sum(-1, keepdim=True) * v / v.square().sum(-1, keepdim=True)
    # Float32 inside: the one rounding to bf16 is at the end.
    assert (z.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert (z != expected.bfloat16()).float().mean() < 0.001


@pytest.mark.parametrize("block", ["adaln", "film"])
def test_modulation_starts_at_zero(block):
    net = build_backbone(tiny("objective=diffusion", f"model.block={block}"))
    for layer in net.stack.blocks:
        assert not layer.condition(torch.randn(2, 16)).any()
    x = torch.randn(2, 16, 16)
    states = net.stack(x, torch.randn(2, 16), (2,)).exits
    # adaLN's gates close both branches; film only leaves its hidden layer unchanged.
    assert torch.equal(states[2], x) == (block == "adaln")
