"""The metrics of the classifier of digits, and halves of a set (a pytest plugin)."""

import pytest
import torch

from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation.classifier import ClassifierMetrics

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digit_metrics(digits) -> ClassifierMetrics:
    """The reference is the training split."""
    train, _ = digits
    return ClassifierMetrics(train, 10, train)


def half(split: ImageSet, which: int) -> ImageSet:
    """One of two halves, each with equal shares of the classes."""
    order = split.labels.sort(stable=True).indices[which::2]
    return ImageSet(split.name, split.images[order], split.labels[order])
