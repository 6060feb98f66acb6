"""A small network in place of Inception (a pytest plugin)."""

import pytest
from torch import Tensor, nn

from eltlab.evaluation import inception


class Small(nn.Module):
    """Replaces Inception: the features are the pixels, and has_classes stands for the weights."""

    name = "small-1"
    class_hash = "small-2"

    def __init__(self, has_classes: bool) -> None:
        super().__init__()
        self.has_classes = has_classes

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 64

    def logits(self, features: Tensor) -> Tensor:
        return features[:, :10]


@pytest.fixture
def small_inception(monkeypatch):
    monkeypatch.setattr(inception, "load_inception", lambda weights: Small(weights == "classes"))
