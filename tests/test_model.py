"""The backbones: loops, exits, conditions, patches and compilation."""

import copy
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import perturbed, tiny

from eltlab.config.network_shape import Network
from eltlab.model.backbone import (
    PatchBackbone,
    TokenBackbone,
    build_backbone,
    initialise_backbone,
    sincos,
    sinusoid,
)
from eltlab.model.loop import LoopedStack
from eltlab.model.patches import Patches

WIDTH, LAYERS, CLASSES, CODES, TOKENS = 16, 2, 5, 7, 9

# Modulated blocks need a condition vector, which the token backbone does not have (config refuses them).
TOKEN = [("token", "post_norm"), ("token", "pre_norm")]
PATCH = [("patch", block) for block in ("post_norm", "pre_norm", "adaln", "film")]
both_backbones = pytest.mark.parametrize(("kind", "block"), TOKEN + PATCH)
patch_blocks = pytest.mark.parametrize("block", [block for _, block in PATCH])


def make(kind: str, block: str, dropout: float = 0.0):
    patches = Patches((3, 6, 6), 2)
    net = Network(
        block=block,
        width=WIDTH,
        heads=2,
        mlp_width=24,
        cond_width=12 if block in ("adaln", "film") else WIDTH,
        dropout=dropout,
        masked=kind == "token",
        unique_layers=LAYERS,
        loops=1,
        tokens=TOKENS,
        patch_values=patches.values,
        codes=CODES,
        classes=CLASSES,
    )
    backbone = TokenBackbone(net) if net.masked else PatchBackbone(net, patches)
    initialise_backbone(backbone, torch.Generator().manual_seed(0))
    return perturbed(backbone).eval()


def inputs(kind: str, batch: int = 3) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    if kind == "token":
        return (torch.randint(CODES + 1, (batch, TOKENS), generator=generator),)
    images = torch.randn(batch, 3, 6, 6, generator=generator)
    return images, torch.rand(batch, generator=generator)


def read(net, kind: str, exits=(3,), labels=(0, 1, 2), **settings):
    return net(*inputs(kind), labels_B=torch.tensor(labels), exits=exits, **settings)


def counted_calls(module) -> list[int]:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# --- loops and exits ------------------------------------------------------------------------------


@both_backbones
def test_read_out_at_an_exit_equals_a_fresh_forward_of_that_many_loops(kind, block):
    net = make(kind, block)
    together = read(net, kind, exits=(1, 2, 3, 4)).exits
    assert list(together) == [1, 2, 3, 4]
    for loop, prediction in together.items():
        assert torch.equal(prediction, read(net, kind, exits=(loop,)).exits[loop])
    assert not torch.allclose(together[3], together[4])


@both_backbones
def test_loops_equal_the_unrolled_stack(kind, block):
    net = make(kind, block)
    looped = read(net, kind, exits=(3,)).exits[3]
    net.stack = LoopedStack(copy.deepcopy(layer) for _ in range(3) for layer in net.stack.blocks)
    assert torch.equal(looped, read(net, kind, exits=(1,)).exits[1])


@both_backbones
def test_teacher_and_student_share_one_forward_and_its_dropout_masks(kind, block):
    net = make(kind, block, dropout=0.5).train()
    calls = [counted_calls(layer) for layer in net.stack.blocks]
    torch.manual_seed(0)
    together = read(net, kind, exits=(2, 4)).exits
    assert [len(made) for made in calls] == [4] * LAYERS
    for loop in (2, 4):
        torch.manual_seed(0)
        assert torch.equal(together[loop], read(net, kind, exits=(loop,)).exits[loop])
    # Without the seed the masks differ, so dropout is on.
    assert not torch.allclose(together[2], read(net, kind, exits=(2,)).exits[2])


@pytest.mark.parametrize("exits", [(), (0,), (2, -1)])
def test_exits_below_one_loop_are_refused(exits):
    with pytest.raises(ValueError, match="at least 1"):
        read(make("token", "post_norm"), "token", exits=exits)


@both_backbones
def test_tracked_updates_are_the_relative_change_of_each_loop(kind, block):
    net = make(kind, block)
    kept = []
    net.stack.register_forward_pre_hook(lambda _, arguments: kept.append(arguments))
    done = read(net, kind, exits=(2, 4), track=True)
    start, condition = kept[0][:2]
    states, none, _ = net.stack(start, condition, (1, 2, 3, 4))
    assert none is None
    path = [start, *states.values()]
    moved = [
        ((after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean()
        for before, after in pairwise(path)
    ]
    torch.testing.assert_close(done.updates, torch.stack(moved))
    assert torch.equal(done.exits[4], read(net, kind, exits=(4,)).exits[4])


def test_gradients_of_an_exit_sum_over_its_loops():
    """Shared weights: the gradient of L loops is the sum over the copies of the unrolled stack."""
    net = make("token", "post_norm")
    read(net, "token", exits=(3,)).exits[3].square().sum().backward()
    shared = net.stack.blocks[0].mlp.up.weight.grad
    unrolled = make("token", "post_norm")
    layers = [copy.deepcopy(layer) for _ in range(3) for layer in unrolled.stack.blocks]
    unrolled.stack = LoopedStack(layers)
    read(unrolled, "token", exits=(1,)).exits[1].square().sum().backward()
    copies = sum(layer.mlp.up.weight.grad for layer in layers[::LAYERS])
    torch.testing.assert_close(shared, copies, rtol=1e-4, atol=1e-4)


# --- conditions -----------------------------------------------------------------------------------


@both_backbones
def test_changing_the_label_changes_the_output_of_that_sample_only(kind, block):
    net = make(kind, block)
    one = read(net, kind, labels=(0, 1, 2)).exits[3]
    other = read(net, kind, labels=(3, 1, 2)).exits[3]
    assert (one[0] - other[0]).abs().max() > 1e-3
    assert torch.equal(one[1:], other[1:])


@both_backbones
def test_the_null_label_differs_from_every_class(kind, block):
    net = make(kind, block)
    null = read(net, kind, labels=(CLASSES,) * 3).exits[3]
    for label in range(CLASSES):
        given = read(net, kind, labels=(label,) * 3).exits[3]
        assert (null - given).abs().max() > 1e-3


@patch_blocks
def test_changing_the_time_changes_the_output(block):
    net = make("patch", block)
    images, time = inputs("patch")
    labels = torch.tensor([0, 1, 2])
    one = net(images, time, labels_B=labels, exits=(3,)).exits[3]
    other = net(images, time / 2, labels_B=labels, exits=(3,)).exits[3]
    assert (one - other).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("block", ["adaln", "film"])
@pytest.mark.parametrize("loops", [1, 5])
def test_conditions_are_computed_once_per_pass(block, loops):
    net = make("patch", block)
    calls = [counted_calls(layer.modulation) for layer in net.stack.blocks]
    read(net, "patch", exits=tuple(range(1, loops + 1)))
    assert [len(made) for made in calls] == [1] * LAYERS


@patch_blocks
def test_unmodulated_blocks_get_time_and_class_as_a_token_in_front(block):
    net = make("patch", block)
    kept = []
    net.stack.blocks[0].register_forward_pre_hook(lambda _, given: kept.append(given))
    read(net, "patch", exits=(1,))
    state, condition = kept[0]
    images, time = inputs("patch")
    patches = net.input(net.patches.cut(images)) + net.position
    assert torch.equal(state[:, -TOKENS:], patches)
    if block in ("adaln", "film"):
        assert state.shape[1] == TOKENS and condition is not None
    else:
        vector = net.time(sinusoid(1000 * time, 256)) + net.label(torch.tensor([0, 1, 2]))
        assert state.shape[1] == TOKENS + 1 and condition is None
        assert torch.equal(state[:, 0], vector)


@pytest.mark.parametrize("block", ["adaln", "film"])
def test_modulation_starts_at_zero(block):
    net = build_backbone(tiny("objective=diffusion", f"model.block={block}"))
    for layer in net.stack.blocks:
        assert not layer.condition(torch.randn(2, 16)).any()
    x = torch.randn(2, 16, 16)
    states = net.stack(x, torch.randn(2, 16), (2,)).exits
    # adaLN's gates close both branches; film only leaves its hidden layer unchanged.
    assert torch.equal(states[2], x) == (block == "adaln")


# --- tokens, positions and patches ----------------------------------------------------------------


@pytest.mark.parametrize("block", ["post_norm", "pre_norm"])
def test_the_head_never_emits_the_mask_id(block):
    net = make("token", block)
    assert net.token.num_embeddings == CODES + 1  # [MASK] can be read ...
    logits = read(net, "token").exits[3]
    assert logits.shape == (3, TOKENS, CODES)  # ... and has no logit


@both_backbones
def test_positions_matter(kind, block):
    """Without positions, permuting the tokens would only permute the output."""
    net = make(kind, block)
    order = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(2))
    given = inputs(kind)
    straight = net(*given, labels_B=torch.arange(3), exits=(2,)).exits[2]
    if kind == "token":
        moved = (given[0][:, order],)
        expected = straight[:, order]
    else:
        patches = net.patches
        moved = (patches.join(patches.cut(given[0])[:, order]), given[1])
        expected = patches.join(patches.cut(straight)[:, order])
    got = net(*moved, labels_B=torch.arange(3), exits=(2,)).exits[2]
    assert (got - expected).abs().max() > 1e-3


CUTS = [
    Patches((1, 8, 8), 2),
    Patches((3, 6, 6), 2),
    Patches((4, 9, 9), 3),
    Patches((3, 4, 4), 1),
    Patches((4, 3, 4, 6), 2, 2),
    Patches((3, 1, 4, 4), 4),
]


@pytest.mark.parametrize("patches", CUTS)
def test_join_is_the_inverse_of_cut(patches):
    x = torch.randn(2, *patches.shape)
    tokens = patches.cut(x)
    assert tokens.shape == (2, math.prod(patches.grid), patches.values)
    assert tokens[0].numel() == x[0].numel()
    assert torch.equal(patches.join(tokens), x)


def test_a_pixel_is_in_its_own_patch():
    """A plain reshape survives the round trip too, but mixes channels and rows in one token."""
    for channel, row, column in [(0, 0, 1), (1, 3, 4), (2, 5, 0)]:
        x = torch.zeros(1, 3, 6, 6)
        x[0, channel, row, column] = 1
        token, value = Patches((3, 6, 6), 2).cut(x)[0].nonzero().squeeze(0).tolist()
        assert token == (row // 2) * 3 + column // 2
        assert value == channel * 4 + (row % 2) * 2 + column % 2


def test_a_pixel_of_a_clip_is_in_the_patch_of_its_frames():
    for frame, channel, row, column in [(0, 2, 3, 4), (3, 0, 5, 1), (5, 1, 0, 0)]:
        x = torch.zeros(1, 6, 3, 6, 6)
        x[0, frame, channel, row, column] = 1
        token, value = Patches((6, 3, 6, 6), 2, 3).cut(x)[0].nonzero().squeeze(0).tolist()
        assert token == (frame // 3) * 9 + (row // 2) * 3 + column // 2
        assert value == (frame % 3) * 12 + channel * 4 + (row % 2) * 2 + column % 2


def test_an_image_is_a_clip_of_one_frame():
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(Patches((3, 6, 6), 2).cut(x), Patches((1, 3, 6, 6), 2).cut(x.unsqueeze(1)))
    net = make("patch", "adaln")
    assert torch.equal(net.position, sincos((1, 3, 3), WIDTH))


def test_positions_of_clips_tell_every_frame_row_and_column_apart():
    grid = (3, 4, 5)
    table = sincos(grid, 24).view(*grid, 24)
    frame, row, column = table.split([8, 8, 8], dim=-1)
    assert torch.equal(frame, frame[:, :1, :1].expand_as(frame))
    assert torch.equal(row, row[:1, :, :1].expand_as(row))
    assert torch.equal(column, column[:1, :1].expand_as(column))
    assert len(table.flatten(0, 2).unique(dim=0)) == 3 * 4 * 5


# --- blocks ---------------------------------------------------------------------------------------


def test_attention_is_softmax_attention_over_heads():
    attention = make("token", "post_norm").stack.blocks[0].attention
    x = torch.randn(2, 5, WIDTH)
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
    expected = attention.proj(mixed.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x), expected)


def test_film_scales_and_shifts_the_hidden_layer():
    """PAPER, Settings: h = GELU(W₁·LN x)·(1 + s) + b, pre-norm, no gates."""
    layer = make("patch", "film").stack.blocks[0]
    x, condition = torch.randn(2, 5, WIDTH), torch.randn(2, 12)
    scale, shift = layer.modulation(F.silu(condition))[:, None].split(24, dim=-1)
    x1 = x + layer.attention(layer.norm1(x))
    hidden = F.gelu(layer.mlp.up(layer.norm2(x1))) * (1 + scale) + shift
    expected = x1 + layer.mlp.down(hidden)
    torch.testing.assert_close(layer(x, layer.condition(condition)), expected)


# --- initial weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_initial_weights_are_a_function_of_the_seed(objective):
    def weights(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)  # the global state has no effect
        net = build_backbone(tiny(f"objective={objective}", f"seed={seed}"))
        return torch.cat([p.flatten() for p in net.parameters()])

    assert torch.equal(weights(3, before=0), weights(3, before=1))
    assert not torch.equal(weights(3, before=0), weights(4, before=0))


# --- compilation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["post_norm", "adaln"])
def test_compiled_graphs_do_not_grow_with_the_loop_count(block, graphs):
    net = make("patch", block)
    plain = {loops: read(net, "patch", exits=(loops,)).exits[loops] for loops in (2, 6, 3)}
    net.stack.compile_blocks()
    seen = []
    for loops, expected in plain.items():
        torch.testing.assert_close(read(net, "patch", exits=(loops,)).exits[loops], expected)
        seen.append(len(graphs))
    assert seen[0] >= 1 and seen == [seen[0]] * 3
