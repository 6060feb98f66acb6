"""Training batches as a function of (seed, step), so that a run resumes in the middle of an epoch."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from eltlab.seeds import generator

CPU = torch.device("cpu")


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch)).to(device)


def batch_indices(
    seed: int, step: int, batch_size: int, size: int, device: torch.device = CPU
) -> Tensor:
    """Which examples step 0, 1, … trains on: shuffled epochs laid end to end, cut into batches."""
    parts = []
    first, left = step * batch_size, batch_size
    while left:
        epoch, offset = divmod(first, size)
        part = _epoch_order(seed, epoch, size, device)[offset : offset + left]
        parts.append(part)
        first, left = first + len(part), left - len(part)
    return torch.cat(parts)


class Batches:
    """The loader of a run whose data lie in memory: batches (inputs, labels) of steps start…stop − 1.

    Tensors stay where they are (moved to the device once, before training); a step only gathers.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, batch_size: int, seed: int, start: int, stop: int
    ) -> None:
        self.inputs, self.labels = inputs, labels
        self.batch_size, self.seed, self.start, self.stop = batch_size, seed, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.start, self.stop):
            size, device = len(self.inputs), self.inputs.device
            indices = batch_indices(self.seed, step, self.batch_size, size, device)
            yield self.inputs[indices], self.labels[indices]
