"""All randomness is a function of (seed, purpose, step or sample index); no state is carried along.

A resumed run therefore draws the same numbers as an uninterrupted one (docs/architecture.md, decision 2).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.philox import MASK, Words, philox


def fold(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words without "/". Different parts give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(fold(*parts))


class SampleNoise:
    """Noise keyed by (seed, sample index): sample i gets the same noise in any batch and on any rank.

    Element e of draw k of a sample is a function of (seed, index, k, e) only. It is computed on the device,
    with the same random bits on every device: uniform numbers are equal, normal ones up to rounding.

    Args:
        indices: of the samples, copied to the device once.
    """

    def __init__(self, seed: int, indices: list[int], device: torch.device | str = "cpu") -> None:
        folded = fold(seed, "sample")
        self.key = (folded & MASK, folded >> 32)
        # [samples, 1], the low and the high 32 bits
        words = [[index & MASK, index >> 32 & MASK] for index in indices]
        self.index_low, self.index_high = torch.tensor(words, device=device).T.unsqueeze(-1)
        self.draws = 0

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.index_low)

    @property
    def device(self) -> torch.device:
        return self.index_low.device

    def normal(self, *shape: int) -> Tensor:
        """[samples, *shape], float32, standard normal, by Box and Muller's transform of pairs of words."""
        # In float32: it resolves the tails as far as 32 bits do (6.7 standard deviations), and float64 is up
        # to 64 times slower on a GPU.
        first, second, third, fourth = self._next_words(shape)
        pairs = (*_box_muller(first, second), *_box_muller(third, fourth))
        return self._arrange(pairs, shape)

    def uniform(self, *shape: int) -> Tensor:
        """[samples, *shape], float32, uniform on [0, 1): multiples of 2⁻²⁴, as torch.rand's."""
        parts = [(words >> 8).float().mul_(2**-24) for words in self._next_words(shape)]
        return self._arrange(parts, shape)

    def _next_words(self, shape: tuple[int, ...]) -> Words:
        """Four words for each block of four elements: int64 [samples, blocks] each."""
        block = torch.arange(math.ceil(math.prod(shape) / 4), device=self.device)
        draw = torch.full_like(self.index_low, self.draws)
        self.draws += 1
        return philox((block, self.index_high, self.index_low, draw), self.key)

    def _arrange(self, parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """[samples, *shape] from the four elements of each block."""
        elements = torch.stack(list(parts), dim=-1).flatten(1)
        return elements[:, : math.prod(shape)].reshape(len(self), *shape)


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent normal numbers from two words: √(−2·ln u)·cos(2πv) and √(−2·ln u)·sin(2πv)."""
    u = first.float().mul_(2**-32).add_(2**-33)  # in (0, 1]: ln 0 would be infinite
    radius = u.log_().mul_(-2).sqrt_()
    angle = second.float().mul_(2**-32).mul_(2 * math.pi)
    return radius * angle.cos(), radius * angle.sin()


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
