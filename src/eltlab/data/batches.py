"""Training batches as a function of (seed, step), so that a run resumes in the middle of an epoch."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from eltlab.data.imagefiles import ImageFiles
from eltlab.data.images import to_float
from eltlab.seeds import WHOLE, Share, generator

CPU = torch.device("cpu")


@lru_cache(maxsize=4)  # two epochs, on the CPU for what decodes and on the device
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


def flips(seed: int, step: int, batch_size: int, device: torch.device = CPU) -> Tensor:
    """Which images of a batch are mirrored, bool [B]: each with probability 1/2."""
    drawn = torch.rand(batch_size, generator=generator(seed, "flip", step)) < 0.5
    if device.type == "cuda":  # a copy from pageable memory would wait for the device
        drawn = drawn.pin_memory()
    return drawn.to(device, non_blocking=True)


def where_flipped(flipped_B: Tensor, mirrored: Tensor, straight: Tensor) -> Tensor:
    return torch.where(flipped_B.view(-1, *[1] * (straight.dim() - 1)), mirrored, straight)


def pieces(start: int, stop: int, share: Share) -> Iterator[tuple[int, Share]]:
    """Each step, with this share of each of its pieces."""
    for step in range(start, stop):
        for piece in share.each_piece():
            yield step, piece


class Batches:
    """The loader of a run whose data lie in memory: (inputs, labels) of steps start…stop − 1, this
    share's rows of each piece of a batch.

    Tensors stay where they are (moved to the device once, before training); a step only gathers, and
    brings images into [−1, 1].

    Args:
        inputs: uint8 images [N, C, H, W], or what the objective takes as it is, such as ids [N, T].
        flip: mirror half of the images.
        mirrored: the inputs of the mirrored images, where they are not those of images in reverse.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        flip: bool = False,
        mirrored: Tensor | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.inputs, self.labels, self.mirrored = inputs, labels, mirrored
        self.batch_size, self.seed, self.start, self.stop = batch_size, seed, start, stop
        self.flip, self.share = flip, share

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.pieces

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size, device = len(self.inputs), self.inputs.device
        for step, share in pieces(self.start, self.stop, self.share):
            rows = share.rows(self.batch_size)
            indices = batch_indices(self.seed, step, self.batch_size, size, device)[rows]
            x = self.inputs[indices]
            if self.flip:
                mirrored = x.flip(-1) if self.mirrored is None else self.mirrored[indices]
                flipped_B = flips(self.seed, step, self.batch_size, device)[rows]
                x = where_flipped(flipped_B, mirrored, x)
            yield to_float(x) if x.dtype == torch.uint8 else x, self.labels[indices]


class StreamedBatches:
    """The batches that `Batches` gives of the same images, decoded while the network trains.

    Args:
        files: images and labels; data.workers processes decode ahead of the steps.
        device: where the batches go.
    """

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        flip: bool,
        device: torch.device,
        share: Share = WHOLE,
    ) -> None:
        self.files, self.flip, self.device, self.share = files, flip, device, share
        self.batch_size, self.seed, self.start, self.stop = batch_size, seed, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.pieces

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed, batch_size, size = self.seed, self.batch_size, len(self.files)
        taken = [
            (step, share.rows(batch_size))
            for step, share in pieces(self.start, self.stop, self.share)
        ]
        orders = (batch_indices(seed, n, batch_size, size)[rows].tolist() for n, rows in taken)
        decoded = self.files.decoded(orders, pin=self.device.type == "cuda")
        labels = self.files.labels.to(self.device)
        for (step, rows), images in zip(taken, decoded, strict=True):
            x = images.to(self.device, non_blocking=True)
            if self.flip:
                flipped_B = flips(seed, step, batch_size, self.device)[rows]
                x = where_flipped(flipped_B, x.flip(-1), x)
            indices = batch_indices(seed, step, batch_size, size, self.device)[rows]
            yield to_float(x), labels[indices]
