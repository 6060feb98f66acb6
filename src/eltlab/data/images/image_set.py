"""Labelled images or clips in memory, and the number ranges they travel in."""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.hashing import digest


class ImageSet:
    """images uint8 [N, C, H, W], or clips [N, F, C, H, W], and labels int64 [N].

    origin tells the sets apart that a run may be trained on: a hash of the files that the images were
    decoded from, or of the images themselves.
    """

    def __init__(
        self, name: str, images: Tensor, labels: Tensor, origin: str | None = None
    ) -> None:
        assert images.dtype == torch.uint8 and images.dim() in (4, 5)
        assert len(images) == len(labels)
        self.name, self.images, self.labels = name, images, labels
        self._origin = origin

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), of clips (F, C, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def hash(self) -> str:
        return digest(self.images.numpy(), self.labels.numpy())

    @property
    def origin(self) -> str:
        return self._origin or self.hash

    @property
    def content(self) -> str:
        """Of the very pixels: what is computed from them is cached under it."""
        return self.hash

    def decoded(self, batches: Iterable[list[int]]) -> Iterator[Tensor]:
        """The images of each list of indices."""
        for indices in batches:
            yield self.images[indices]

    def parts(self, size: int) -> Iterator[Tensor]:
        """The images in order, this many at a time."""
        yield from self.images.split(size)

    def subset(self, count: int | None) -> "ImageSet":
        """A seeded subset of count images, in order; None: the whole set. Raises UserError."""
        if count is None or count == len(self):
            return self
        chosen = choose(count, len(self), self.name)
        return ImageSet(self.name, self.images[chosen], self.labels[chosen])


def choose(count: int, size: int, name: str) -> np.ndarray:
    """Ascending indices of a seeded subset of a set of this size. Raises UserError."""
    if count > size:
        raise UserError(
            f"metrics.reference={count}: {name} has only {size:,} images; give at most {size}"
        )
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def by_class(name: str, images: Tensor, labels: Tensor) -> ImageSet:
    """The set ordered by label, and within a class as given: the order of a folder of classes."""
    order = torch.argsort(labels, stable=True)
    return ImageSet(name, images[order], labels[order])


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0…255 → float32 in [−1, 1]."""
    return images.float() / 127.5 - 1


def as_input(x: Tensor) -> Tensor:
    """What an objective corrupts: images brought into [−1, 1]; ids and latents are it already."""
    return to_float(x) if x.dtype == torch.uint8 else x


def to_uint8(x: Tensor) -> Tensor:
    """[−1, 1] → uint8, rounded to the nearest; values outside are clipped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
