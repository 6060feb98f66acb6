"""The digits and their fixed split."""

import numpy as np
import torch
from sklearn.datasets import load_digits as load_original

from eltlab.data.images.digits import load_digits


def test_digits_have_a_fixed_split(digits):
    train, test = digits
    assert (len(train), len(test)) == (1442, 355)
    for split in digits:
        assert split.images.shape[1:] == (1, 8, 8) and split.images.dtype == torch.uint8
        assert split.images.min() == 0 and split.images.max() == 255
    again = load_digits()
    assert [s.hash for s in digits] == [s.hash for s in again] and train.hash != test.hash


def test_digits_are_split_without_overlap_or_loss(digits):
    train, test = (split.images.flatten(1).numpy() for split in digits)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    both = np.concatenate([train, test]) / 255 * 16
    # 17 grey levels come back exactly; the split loses no image.
    assert np.abs(both - both.round()).max() < 0.05
    source = load_original().data
    order, order_source = np.lexsort(both.round().T), np.lexsort(source.T)
    assert np.array_equal(both.round()[order], source[order_source])


def test_digits_are_balanced(digits):
    train, test = (torch.bincount(split.labels, minlength=10) for split in digits)
    assert test.min() >= 34 and test.max() <= 36
    assert (test == (train + test) // 5).all()
