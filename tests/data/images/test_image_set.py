"""Subsets of images in memory, and the conversion between bytes and the range −1 to 1."""

import torch
from support.errors import fails

from eltlab.data.images.image_set import to_float, to_uint8


def test_subset_is_seeded_and_in_order(digits):
    train, _ = digits
    part = train.subset(100)
    assert len(part) == 100 and part.hash == train.subset(100).hash != train.hash
    keys = [image.numpy().tobytes() for image in train.images]
    places = [keys.index(image.numpy().tobytes()) for image in part.images]
    assert places == sorted(places)
    # As in version 0.1.0: protocols contain the hash of the subset.
    assert places[:5] == [12, 98, 101, 118, 150]
    assert train.subset(None) is train and train.subset(1442) is train


def test_a_subset_larger_than_the_set_is_refused(digits):
    message = fails(digits[0].subset, 1443)
    assert message == "metrics.reference=1443: digits/train has only 1,442 images; give at most 1442"


def test_every_grey_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x[0] == -1 and x[255] == 1 and x.dtype == torch.float32
    assert torch.equal(to_uint8(x), levels)


def test_to_uint8_rounds_to_nearest_and_clips():
    x = torch.tensor([-3.0, 3.0, to_float(torch.tensor(100)) + 0.4 / 127.5])
    assert to_uint8(x).tolist() == [0, 255, 100]
