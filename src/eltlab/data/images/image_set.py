"""Labelled images or clips in memory, and conversions between uint8 and [−1, 1]."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError


class ImageSet:
    """Images uint8 [N, C, H, W], or clips [N, F, C, H, W], and labels int64 [N]. origin: identifies the
    data of a run, by a hash of the files of the images; None: by the hash of the images."""

    def __init__(self, name: str, images: Tensor, labels: Tensor, origin: str | None = None) -> None:
        assert images.dtype == torch.uint8 and images.dim() in (4, 5) and len(images) == len(labels)
        self.name, self.images, self.labels = name, images, labels
        self._origin = origin

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (F, C, H, W) for clips."""
        return tuple(self.images.shape[1:])

    @cached_property
    def hash(self) -> str:
        """Identifies the pixels and labels: the key of anything cached that was computed from them."""
        return digest(self.images.numpy(), self.labels.numpy())

    @property
    def origin(self) -> str:
        return self._origin or self.hash

    def read_batches(self, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """uint8 [B, *shape] for each list of indices."""
        return (self.images[indices] for indices in batches)

    def read_in_order(self, batch: int) -> Iterator[Tensor]:
        """All images, in batches of this size."""
        return iter(self.images.split(batch))

    def subset(self, count: int | None) -> "ImageSet":
        """A seeded subset of count images, in order; None: the whole set. Raises UserError."""
        if count is None or count == len(self):
            return self
        chosen = choose_subset(count, len(self), self.name)
        return ImageSet(self.name, self.images[chosen], self.labels[chosen])

    def part(self, indices: Tensor) -> "ImageSet":
        """The images at these indices, in this order, as a part of the same data: origin stays."""
        return ImageSet(self.name, self.images[indices], self.labels[indices], self.origin)


def choose_subset(count: int, size: int, name: str) -> np.ndarray:
    """Ascending indices of a seeded subset of a set of this size. Raises UserError."""
    if count > size:
        raise UserError(f"metrics.reference={count}: {name} has only {size:,} images; give at most {size}")
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def sort_by_class(name: str, images: Tensor, labels: Tensor) -> ImageSet:
    """The images in the order of a folder of classes: by label; within a class, in the given order."""
    order = torch.argsort(labels, stable=True)
    return ImageSet(name, images[order], labels[order])


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0…255 → float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def as_input(x: Tensor) -> Tensor:
    """The input of an objective: images in [−1, 1]; ids and latents are unchanged."""
    return to_float(x) if x.dtype == torch.uint8 else x


def to_uint8(x: Tensor) -> Tensor:
    """[−1, 1] → uint8, clipped and rounded to the nearest integer."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
