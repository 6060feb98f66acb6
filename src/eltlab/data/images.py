"""Labelled images in memory, and the number ranges they travel in."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eltlab.files import digest


class ImageSet:
    """images uint8 [N, C, H, W] and labels int64 [N]."""

    def __init__(self, name: str, images: Tensor, labels: Tensor) -> None:
        assert images.dtype == torch.uint8 and images.dim() == 4 and len(images) == len(labels)
        self.name, self.images, self.labels = name, images, labels

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def hash(self) -> str:
        return digest(self.images.numpy(), self.labels.numpy())

    def subset(self, count: int | None) -> "ImageSet":
        """A seeded subset of count images, in order; the whole set where count is None or larger."""
        if count is None or count >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(0).permutation(len(self))[:count])
        return ImageSet(self.name, self.images[chosen], self.labels[chosen])


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0…255 → float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[−1, 1] → uint8, rounded to the nearest; values outside are clipped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
