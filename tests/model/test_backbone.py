"""What reaches the output of a backbone (class, time, position), and its initial weights."""

import pytest
import torch
from support.backbones import CLASSES, CODES, PATCH, TOKENS, both_backbones, inputs, make, read
from support.generators import generator
from support.networks import perturbed
from support.tiny_run import tiny

from eltlab.model.backbone import build_backbone, sincos, sinusoid

patch_blocks = pytest.mark.parametrize("block", [block for _, block in PATCH])


def test_class_and_time_reach_the_velocity():
    config = tiny("objective=flow")
    net = perturbed(build_backbone(config)).eval()
    z = torch.randn(1, 1, 8, 8, generator=generator())

    def predicted(time, label):
        return net(z, torch.tensor([time]), labels_B=torch.tensor([label]), exits=(2,)).exits[2]

    assert not torch.equal(predicted(0.5, 1), predicted(0.5, 2))
    assert not torch.equal(predicted(0.5, 1), predicted(0.6, 1))


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


@patch_blocks
def test_unmodulated_blocks_get_time_and_class_as_a_token_in_front(block):
    net = make("patch", block)
    calls = []
    net.stack.blocks[0].register_forward_pre_hook(lambda _, given: calls.append(given))
    read(net, "patch", exits=(1,))
    state, condition = calls[0]
    images, time = inputs("patch")
    patches = net.input(net.patches.cut(images)) + net.position
    assert torch.equal(state[:, -TOKENS:], patches)
    if block in ("adaln", "film"):
        assert state.shape[1] == TOKENS and condition is not None
    else:
        vector = net.time(sinusoid(1000 * time, 256)) + net.label(torch.tensor([0, 1, 2]))
        assert state.shape[1] == TOKENS + 1 and condition is None
        assert torch.equal(state[:, 0], vector)


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


def test_positions_of_clips_tell_every_frame_row_and_column_apart():
    grid = (3, 4, 5)
    table = sincos(grid, 24).view(*grid, 24)
    frame, row, column = table.split([8, 8, 8], dim=-1)
    assert torch.equal(frame, frame[:, :1, :1].expand_as(frame))
    assert torch.equal(row, row[:1, :, :1].expand_as(row))
    assert torch.equal(column, column[:1, :1].expand_as(column))
    assert len(table.flatten(0, 2).unique(dim=0)) == 3 * 4 * 5


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_initial_weights_are_a_function_of_the_seed(objective):
    def weights(seed: int, before: int) -> torch.Tensor:
        torch.manual_seed(before)  # the global state has no effect
        net = build_backbone(tiny(f"objective={objective}", f"seed={seed}"))
        return torch.cat([p.flatten() for p in net.parameters()])

    assert torch.equal(weights(3, before=0), weights(3, before=1))
    assert not torch.equal(weights(3, before=0), weights(4, before=0))
