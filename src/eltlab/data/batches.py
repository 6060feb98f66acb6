"""Training batches as a function of (seed, step), so that a run can resume in the middle of an epoch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eltlab.common.seeds import WHOLE_BATCH, BatchNoise, BatchSlice, SampleNoise, generator
from eltlab.data.images.image_set import to_float
from eltlab.data.readahead import read_ahead

CPU = torch.device("cpu")
LABELS = "labels"
FLIPPED = "_flipped"  # suffix of the tensor that contains every row mirrored


class Rows(Protocol):
    """The rows of one tensor: a tensor itself, or files that are read when they are indexed."""

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@lru_cache(maxsize=4)  # two epochs, each on the CPU (for the reading processes) and on the device
def _epoch_order(seed: int, epoch: int, size: int, device: torch.device) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch)).to(device)


def batch_indices(seed: int, step: int, batch_size: int, size: int, device: torch.device = CPU) -> Tensor:
    """Which examples step 0, 1, … trains on, int64 [B]. Shuffled epochs are concatenated and cut into
    batches, so a batch may cross the end of an epoch."""
    first, stop = step * batch_size, (step + 1) * batch_size
    epochs = range(first // size, (stop - 1) // size + 1)
    orders = (_epoch_order(seed, epoch, size, device) for epoch in epochs)
    starts = (epoch * size for epoch in epochs)
    return torch.cat([order[max(first - e, 0) : stop - e] for order, e in zip(orders, starts, strict=True)])


def draw_flips(seed: int, step: int, batch_size: int, device: torch.device = CPU) -> Tensor:
    """Which images of a batch are mirrored, bool [B]: each with probability 1/2."""
    drawn = torch.rand(batch_size, generator=generator(seed, "flip", step)) < 0.5
    if device.type == "cuda":  # a copy from pageable memory would wait for the device
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)


def select_rows(tensors: Mapping[str, Rows], indices: Tensor, flipped_B: Tensor | None) -> dict[str, Tensor]:
    """These rows of each tensor. Flipped rows come from the tensor's FLIPPED twin if it has one, because
    an encoder does not commute with mirroring; otherwise their last axis is reversed."""
    rows = {}
    for name in [name for name in tensors if not name.endswith(FLIPPED)]:
        rows[name] = tensors[name][indices]
        if flipped_B is not None and name != LABELS:
            twin = tensors.get(name + FLIPPED)
            mirrored = rows[name].flip(-1) if twin is None else twin[indices]
            mask = flipped_B.view(-1, *[1] * (mirrored.dim() - 1))
            rows[name] = torch.where(mask, mirrored, rows[name])
    return rows


def to_inputs(rows: Mapping[str, Tensor], noise: BatchNoise | SampleNoise | None) -> Tensor:
    """What the objective corrupts: pixels float32 in [−1, 1], ids int64 [B, T], or latents float32
    [B, C, H, W], sampled with the noise from their posterior if they have a logvar."""
    if "images" in rows:
        return to_float(rows["images"])
    if "ids" in rows:
        return rows["ids"].long()
    mean = rows["mean"].float()
    if "logvar" not in rows:
        return mean
    assert noise is not None
    return mean + (rows["logvar"].float() / 2).exp() * noise.normal(*mean.shape[1:])


@dataclass(eq=False)
class BatchLoader:
    """Iterates over (inputs, labels) of each micro-batch of steps start … stop − 1, on the device. If all
    tensors are in memory, they are moved there once; otherwise worker processes read ahead of the steps."""

    tensors: Mapping[str, Rows]  # LABELS int64 [N], and what `to_inputs` takes with its FLIPPED twins
    batch_size: int
    seed: int
    start: int
    stop: int
    flip: bool = False  # mirror half of the images
    device: torch.device = CPU
    workers: int = 0  # processes that read ahead; 0: this process reads
    batch_slice: BatchSlice = WHOLE_BATCH  # the rows of each batch that this process trains on

    def __post_init__(self) -> None:
        tensors = {name: rows for name, rows in self.tensors.items() if isinstance(rows, Tensor)}
        self.in_memory = len(tensors) == len(self.tensors)
        if self.in_memory:
            self.tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def __len__(self) -> int:
        return (self.stop - self.start) * self.batch_slice.micro_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source: Iterator[dict[str, Tensor]]
        if self.in_memory:
            source = (select_rows(self.tensors, *order) for order in self._orders(self.device))
        else:
            source = self._read_ahead()
        for (step, batch_slice), rows in zip(self._micro_batches(), source, strict=True):
            noise = None
            if "logvar" in rows:
                draws = generator(self.seed, "posterior", step, device=self.device)
                noise = BatchNoise(draws, self.batch_size, batch_slice)
            yield to_inputs(rows, noise), rows[LABELS]

    def _micro_batches(self) -> Iterator[tuple[int, BatchSlice]]:
        for step in range(self.start, self.stop):
            for batch_slice in self.batch_slice.each_micro_batch():
                yield step, batch_slice

    def _orders(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The examples of each micro-batch, int64 [B], and which of them are mirrored, bool [B]."""
        size = len(self.tensors[LABELS])  # type: ignore[arg-type]
        for step, batch_slice in self._micro_batches():
            rows = batch_slice.rows(self.batch_size)
            indices = batch_indices(self.seed, step, self.batch_size, size, device)[rows]
            yield indices, draw_flips(self.seed, step, self.batch_size, device)[rows] if self.flip else None

    def _read_ahead(self) -> Iterator[dict[str, Tensor]]:
        # As arrays: a tensor would be sent as a file handle, which its sender may close too early.
        orders = ((n.numpy(), None if f is None else f.numpy()) for n, f in self._orders(CPU))
        pin = self.device.type == "cuda"
        for rows in read_ahead(_RowReader(self.tensors), orders, self.workers, pin):
            yield {name: row.to(self.device, non_blocking=True) for name, row in rows.items()}


@dataclass
class _RowReader(Dataset):
    """The dataset of the worker processes. An item is (indices, flipped)."""

    tensors: Mapping[str, Rows]

    def __getitem__(self, item: tuple[np.ndarray, np.ndarray | None]) -> dict[str, Tensor]:
        indices, flipped = item
        flipped_B = None if flipped is None else torch.from_numpy(flipped)
        return select_rows(self.tensors, torch.from_numpy(indices), flipped_B)
