"""scikit-learn's 1,797 handwritten digits, 8×8: the test set of UCI's Optical Recognition data set."""

import numpy as np
import torch

from eltlab.data.images.image_set import ImageSet

HOLD_OUT = 5  # every fifth image of a class is a test image


def load_digits() -> tuple[ImageSet, ImageSet]:
    """(train, test) with 1,442 and 355 images. The split is fixed and balanced over the classes."""
    from sklearn.datasets import load_digits as load_from_sklearn

    digits = load_from_sklearn()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # 17 levels of grey
    labels = digits.target.astype(np.int64)
    number_in_class = np.array([(labels[:i] == label).sum() for i, label in enumerate(labels)])
    test = number_in_class % HOLD_OUT == HOLD_OUT - 1
    return (
        ImageSet("digits/train", torch.from_numpy(images[~test]), torch.from_numpy(labels[~test])),
        ImageSet("digits/test", torch.from_numpy(images[test]), torch.from_numpy(labels[test])),
    )
