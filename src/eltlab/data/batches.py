"""Training batches as a function of (seed, step), so that a run resumes in the middle of an epoch."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from eltlab.common.seeds import WHOLE_BATCH, BatchSlice, generator
from eltlab.data.images.image_files import ImageFiles
from eltlab.data.images.image_set import as_input, to_float

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


class Loader:
    """What the loaders of a run share: they give steps start…stop − 1, of each its pieces, and of each piece
    this share's rows.

    Args:
        size: of the set.
        flip: mirror half of the images.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        flip: bool,
        batch_slice: BatchSlice,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.start, self.stop, self.flip, self.batch_slice = start, stop, flip, batch_slice

    def __len__(self) -> int:
        return (self.stop - self.start) * self.batch_slice.micro_batches

    def micro_batches(self) -> Iterator[tuple[int, BatchSlice]]:
        """Each step, with this share of each of its pieces."""
        for step in range(self.start, self.stop):
            for piece in self.batch_slice.each_micro_batch():
                yield step, piece

    def indices(self, step: int, batch_slice: BatchSlice, device: torch.device = CPU) -> Tensor:
        """Which examples a piece trains on, int64 [B]."""
        of_all = batch_indices(self.seed, step, self.batch_size, self.size, device)
        return of_all[batch_slice.rows(self.batch_size)]

    def flipped(
        self, step: int, batch_slice: BatchSlice, device: torch.device = CPU
    ) -> Tensor | None:
        """Which of them are mirrored, bool [B]; None where none is."""
        if not self.flip:
            return None
        return flips(self.seed, step, self.batch_size, device)[batch_slice.rows(self.batch_size)]


class Batches(Loader):
    """The loader of a run whose data lie in memory: (inputs, labels) of each piece.

    Tensors stay where they are (moved to the device once, before training); a step only gathers, and
    brings images into [−1, 1].

    Args:
        inputs: uint8 images [N, C, H, W], or what the objective takes as it is, such as ids [N, T].
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
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> None:
        super().__init__(len(inputs), batch_size, seed, start, stop, flip, batch_slice)
        self.inputs, self.labels, self.mirrored = inputs, labels, mirrored

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for piece in self.micro_batches():
            indices = self.indices(*piece, self.inputs.device)
            flipped_B = self.flipped(*piece, self.inputs.device)
            x = self.inputs[indices]
            if flipped_B is not None:
                mirrored = x.flip(-1) if self.mirrored is None else self.mirrored[indices]
                x = where_flipped(flipped_B, mirrored, x)
            yield as_input(x), self.labels[indices]


class StreamedBatches(Loader):
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
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> None:
        super().__init__(len(files), batch_size, seed, start, stop, flip, batch_slice)
        self.files, self.device = files, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        orders = (self.indices(*piece).tolist() for piece in self.micro_batches())
        decoded = self.files.decoded(orders, pin=self.device.type == "cuda")
        labels = self.files.labels.to(self.device)
        for piece, images in zip(self.micro_batches(), decoded, strict=True):
            x = images.to(self.device, non_blocking=True)
            flipped_B = self.flipped(*piece, self.device)
            if flipped_B is not None:
                x = where_flipped(flipped_B, x.flip(-1), x)
            yield to_float(x), labels[self.indices(*piece, self.device)]
