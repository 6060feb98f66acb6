"""Metrics of images that a test chooses, those of the digits, and halves of a set (a pytest plugin)."""

import pytest
import torch

from eltlab.config.schema import MetricsConfig
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation.classifier import ClassifierMetrics
from eltlab.evaluation.inception import InceptionMetrics

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digit_metrics(digits) -> ClassifierMetrics:
    """The reference is the training split."""
    return classifier_metrics(*digits)


def classifier_metrics(train: ImageSet, test: ImageSet | None = None, **keys: object) -> ClassifierMetrics:
    """The metrics of a classifier of ten classes. test: None, the training images. keys: metrics.*"""
    return ClassifierMetrics(train, test or train, 10, MetricsConfig(extractor="classifier", **keys))


def inception_metrics(
    train: ImageSet, weights: str | None = None, test: ImageSet | None = None, **keys: object
) -> InceptionMetrics:
    return InceptionMetrics(
        train, test or train, MetricsConfig(extractor="inception", weights=weights, **keys), CPU
    )


def half(split: ImageSet, which: int) -> ImageSet:
    """One of two halves, each with equal shares of the classes."""
    order = split.labels.sort(stable=True).indices[which::2]
    return ImageSet(split.name, split.images[order], split.labels[order])
