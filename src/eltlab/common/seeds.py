"""All randomness is a function of (seed, purpose, step or sample index).

Nothing carries a random state from one step to the next, so a resumed run draws what an
uninterrupted one draws, and evaluation cannot disturb training (DESIGN decision 2).
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eltlab.common import launcher


def fold(*parts: int | str) -> int:
    """A 63-bit seed out of numbers and words (without "/"); another part, an unrelated seed."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(fold(*parts))


class SampleNoise:
    """Noise keyed by (seed, sample index): sample i is the same in any batch, on any rank.

    One generator a sample, read in the order of the sampling steps. Drawn on the CPU, so that a
    seed means the same noise on every device.
    """

    def __init__(self, seed: int, indices: list[int], device: torch.device | str = "cpu") -> None:
        self.generators = [generator(seed, "sample", index) for index in indices]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """[samples, *shape], standard normal."""
        draws = [torch.randn(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """[samples, *shape], uniform on [0, 1)."""
        draws = [torch.rand(shape, generator=g) for g in self.generators]
        return torch.stack(draws).to(self.device)


class BatchSlice(NamedTuple):
    """One device's part of a global batch in one of the pieces whose gradients are accumulated."""

    rank: int = 0
    world: int = 1  # devices
    micro_batch: int = 0
    micro_batches: int = 1

    @property
    def total(self) -> int:
        """How many shares a batch has."""
        return self.world * self.micro_batches

    @property
    def number(self) -> int:
        """Which of them this is."""
        return self.micro_batch * self.world + self.rank

    def each_micro_batch(self) -> list["BatchSlice"]:
        """This device's share of every piece."""
        return [self._replace(micro_batch=n) for n in range(self.micro_batches)]

    def rows(self, batch_size: int) -> slice:
        """Where its rows lie in the batch; the shares of a batch are equally large."""
        size = batch_size // self.total
        return slice(self.number * size, (self.number + 1) * size)


WHOLE_BATCH = BatchSlice()


def slice_of_this_process(micro_batches: int) -> BatchSlice:
    """What this process trains on, in the first of the micro-batches of a batch."""
    return BatchSlice(launcher.rank(), launcher.world_size(), 0, micro_batches)


class BatchNoise:
    """The noise of a training batch: drawn for all of its rows, of which this share's are given.

    So what a row is given depends neither on the number of devices nor on that of the pieces.

    Args:
        generator: of the step, on the device of the noise.
        batch_size: of the global batch.
    """

    def __init__(
        self, generator: torch.Generator, batch_size: int, share: BatchSlice = WHOLE_BATCH
    ) -> None:
        self.generator, self.batch_size, self.share = generator, batch_size, share

    def normal(self, *shape: int) -> Tensor:
        """[rows, *shape], standard normal."""
        return self.mine(self._draw(torch.randn, shape))

    def uniform(self, *shape: int) -> Tensor:
        """[rows, *shape], uniform on [0, 1)."""
        return self.mine(self.uniform_of_all(*shape))

    def uniform_of_all(self, *shape: int) -> Tensor:
        """[batch_size, *shape], of which `mine` are this share's: for what depends on the whole batch."""
        return self._draw(torch.rand, shape)

    def mine(self, values: Tensor) -> Tensor:
        """This share's rows of what is there for the whole batch, as a view of it."""
        return values[self.share.rows(self.batch_size)]

    def _draw(self, law: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        size = (self.batch_size, *shape)
        return law(size, generator=self.generator, device=self.generator.device)
