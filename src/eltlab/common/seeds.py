"""All randomness is a function of (seed, purpose, step or sample index); no state is carried along.

A resumed run therefore draws the same numbers as an uninterrupted one (docs/architecture.md, decision 2).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eltlab.common import ranks


def fold(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words without "/". Different parts give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(fold(*parts))


class SampleNoise:
    """Noise keyed by (seed, sample index): sample i gets the same noise in any batch and on any rank.

    There is one generator per sample, read in the order of the sampling steps. Noise is drawn on the
    CPU, so a seed gives the same noise on every device.
    """

    def __init__(self, seed: int, indices: list[int], device: torch.device | str = "cpu") -> None:
        self.generators = [generator(seed, "sample", index) for index in indices]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """[samples, *shape], standard normal."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """[samples, *shape], uniform on [0, 1)."""
        return self._draw(torch.rand, shape)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        return torch.stack([draw(shape, generator=g) for g in self.generators]).to(self.device)


@dataclass(frozen=True)
class BatchSlice:
    """The rows of a global batch that a rank processes in one micro-batch. All slices have the same size."""

    rank: int = 0
    world_size: int = 1
    micro_batch: int = 0
    micro_batches: int = 1

    @property
    def count(self) -> int:
        """How many slices make up a batch."""
        return self.world_size * self.micro_batches

    @property
    def index(self) -> int:
        """The position of this slice in the batch, 0…count − 1."""
        return self.micro_batch * self.world_size + self.rank

    def each_micro_batch(self) -> list["BatchSlice"]:
        """The slices of this rank in all micro-batches."""
        return [replace(self, micro_batch=n) for n in range(self.micro_batches)]

    def rows(self, batch_size: int) -> slice:
        """The rows of this slice in a batch of this size."""
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


WHOLE_BATCH = BatchSlice()


def slice_of_this_process(micro_batches: int) -> BatchSlice:
    """The slice of this process in the first micro-batch."""
    return BatchSlice(ranks.rank(), ranks.world_size(), 0, micro_batches)


class BatchNoise:
    """Noise of a training step. It is drawn for the global batch, and each slice takes its own rows.

    The noise of a row therefore depends neither on the number of ranks nor on the number of micro-batches.

    Args:
        generator: the generator of the step, on the device of the noise.
        batch_size: rows of the global batch.
    """

    def __init__(
        self, generator: torch.Generator, batch_size: int, batch_slice: BatchSlice = WHOLE_BATCH
    ) -> None:
        self.generator, self.batch_size, self.batch_slice = generator, batch_size, batch_slice

    def normal(self, *shape: int) -> Tensor:
        """[rows, *shape], standard normal."""
        return self.own_rows(self._draw(torch.randn, shape))

    def uniform(self, *shape: int) -> Tensor:
        """[rows, *shape], uniform on [0, 1)."""
        return self.own_rows(self.uniform_whole_batch(*shape))

    def uniform_whole_batch(self, *shape: int) -> Tensor:
        """[batch_size, *shape], uniform on [0, 1), for what depends on the whole batch."""
        return self._draw(torch.rand, shape)

    def own_rows(self, values: Tensor) -> Tensor:
        """The rows of this slice, as a view of values [batch_size, ...]."""
        return values[self.batch_slice.rows(self.batch_size)]

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        size = (self.batch_size, *shape)
        return draw(size, generator=self.generator, device=self.generator.device)
