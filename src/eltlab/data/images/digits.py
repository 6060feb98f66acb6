"""scikit-learn's 1,797 handwritten digits, 8×8, the test set of UCI's Optical Recognition data."""

import numpy as np
import torch

from eltlab.data.images.image_set import ImageSet

TEST_SHARE = 5  # every fifth image of a class is a test image


def load_digits() -> tuple[ImageSet, ImageSet]:
    """(train, test): 1,442 and 355 images, the split fixed and balanced over the classes."""
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    rank = np.zeros(len(labels), dtype=int)  # how many of its class came before
    for label in range(10):
        rank[labels == label] = np.arange((labels == label).sum())
    test = rank % TEST_SHARE == TEST_SHARE - 1
    return (
        ImageSet("digits/train", torch.from_numpy(images[~test]), torch.from_numpy(labels[~test])),
        ImageSet("digits/test", torch.from_numpy(images[test]), torch.from_numpy(labels[test])),
    )
