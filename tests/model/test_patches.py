"""Images and clips cut into patches, and joined again."""

import math

import pytest
import torch
from support.backbones import WIDTH, make

from eltlab.model.backbone import sincos
from eltlab.model.patches import Patches

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
