"""The splits of an encoded set, and the batches that are trained from them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from eltlab.common.errors import UserError
from eltlab.common.machine import physical_memory
from eltlab.common.seeds import WHOLE_BATCH, BatchNoise, BatchSlice, generator
from eltlab.data.batches import CPU, Loader, where_flipped
from eltlab.data.encoded.manifest import TOKENIZER, Manifest
from eltlab.data.encoded.shards import FLIPPED, layout, read_shard
from eltlab.data.images.image_files import MEMORY_SHARE
from eltlab.data.images.image_set import choose
from eltlab.data.readahead import read_ahead
from eltlab.data.tokenizers.per_frame import PerFrame, over
from eltlab.data.tokenizers.tokenizer_files import Tokenizer, load_tokenizer


def tokenizer_of_set(manifest: Manifest) -> Tokenizer | PerFrame:
    """What the set was encoded with; of clips frame by frame.

    Raises UserError where another lies in its place.
    """
    path = manifest.root / TOKENIZER
    tokenizer = load_tokenizer(path)
    wanted = manifest.encoding.tokenizer["hash"]
    if tokenizer.hash != wanted:
        raise UserError(
            f"{path}: tokenizer {tokenizer.hash}, and the set was encoded with {wanted}; put that one "
            "back, or encode again"
        )
    return over(tokenizer, manifest.encoding.source.frames)


class Mapped:
    """Rows of one tensor that lie in several mapped files: `mapped[indices]` reads those alone."""

    def __init__(self, parts: list[Tensor], per_file: int) -> None:
        self.parts, self.per_file = parts, per_file

    def __getitem__(self, indices: Tensor) -> Tensor:
        out = self.parts[0].new_empty((len(indices), *self.parts[0].shape[1:]))
        files = indices // self.per_file
        for file in files.unique().tolist():
            here = files == file
            out[here] = self.parts[file][indices[here] - file * self.per_file]
        return out

    def whole(self, device: torch.device) -> Tensor:
        """All rows on the device, file by file: beside them no more than one file's are in memory."""
        rows = sum(map(len, self.parts))
        out = self.parts[0].new_empty((rows, *self.parts[0].shape[1:]), device=device)
        for part, place in zip(
            self.parts, out.split([len(part) for part in self.parts]), strict=True
        ):
            place.copy_(part)
        return out


class EncodedSplit:
    """One split: labels int64 [N] in memory, what the images became in mapped files."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        """Raises UserError where a shard is missing or not what the manifest says."""
        self.encoding, self.name = manifest.encoding, split
        shards = [
            read_shard(manifest.root / shard.file, self.encoding, shard.images)
            for shard in manifest.shards[split]
        ]
        self.labels = torch.cat([shard["labels"] for shard in shards]).long()
        self.tensors = {
            name: Mapped([shard[name] for shard in shards], self.encoding.shard)
            for name in layout(self.encoding, 0)
            if name != "labels"
        }

    def __len__(self) -> int:
        return len(self.labels)

    def nbytes(self, flip: bool) -> int:
        """What its tensors take."""
        sizes = [
            math.prod(shape) * dtype.itemsize
            for name, (shape, dtype) in layout(self.encoding, len(self)).items()
            if name != "labels" and (flip or not name.endswith(FLIPPED))
        ]
        return sum(sizes)

    def fits(self, device: torch.device, flip: bool, processes: int = 1) -> bool:
        """Whether it may lie on the device whole; so many processes of this node each have a copy."""
        memory = physical_memory() // processes
        if device.type == "cuda":  # one for each process
            memory = torch.cuda.mem_get_info(device)[1]
        return self.nbytes(flip) <= memory // MEMORY_SHARE

    def whole(self, device: torch.device, flip: bool) -> dict[str, Tensor]:
        return {
            name: tensor.whole(device)
            for name, tensor in self.tensors.items()
            if flip or not name.endswith(FLIPPED)
        }

    def subset(self, most: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a seeded subset, at most this many, for validation."""
        chosen = torch.from_numpy(choose(min(most, len(self)), len(self), self.name))
        noise = BatchNoise(generator("validation", "posterior"), len(chosen))
        return self.inputs(pick(self.tensors, chosen, None), noise), self.labels[chosen]

    def inputs(self, rows: Mapping[str, Tensor], noise: BatchNoise) -> Tensor:
        """What the objective corrupts: ids int64 [B, T], or latents float32 [B, C, H, W], drawn from
        their posterior where they have one."""
        if "ids" in rows:
            return rows["ids"].long()
        mean = rows["mean"].float()
        if "logvar" not in rows:
            return mean
        return mean + (rows["logvar"].float() / 2).exp() * noise.normal(*mean.shape[1:])


def pick(
    tensors: Mapping[str, Tensor | Mapped], indices: Tensor, flipped_B: Tensor | None
) -> dict[str, Tensor]:
    """These rows of each tensor, of its mirrored one where flipped."""
    rows = {}
    for name in [name for name in tensors if not name.endswith(FLIPPED)]:
        rows[name] = tensors[name][indices]
        if flipped_B is not None:
            rows[name] = where_flipped(flipped_B, tensors[name + FLIPPED][indices], rows[name])
    return rows


@dataclass
class _Reader(Dataset):
    """What travels to the processes that read; item: indices, and which of them are mirrored.

    Both are arrays: a tensor would travel by a file handle, which its sender may close too early.
    """

    tensors: dict[str, Mapped]

    def __getitem__(self, rows: tuple[np.ndarray, np.ndarray | None]) -> dict[str, Tensor]:
        indices, flipped = rows
        mirrored = None if flipped is None else torch.from_numpy(flipped)
        return pick(self.tensors, torch.from_numpy(indices), mirrored)


class EncodedBatches(Loader):
    """The loader of a run on an encoded set: (inputs, labels) of each piece.

    Args:
        whole: the set lies on the device and a step only gathers; else `workers` processes read ahead
            from the mapped files.
    """

    def __init__(
        self,
        split: EncodedSplit,
        batch_size: int,
        seed: int,
        start: int,
        stop: int,
        flip: bool,
        device: torch.device,
        whole: bool,
        workers: int,
        batch_slice: BatchSlice = WHOLE_BATCH,
    ) -> None:
        super().__init__(len(split), batch_size, seed, start, stop, flip, batch_slice)
        self.split, self.device, self.workers = split, device, workers
        self.tensors = split.whole(device, flip) if whole else None
        self.labels = split.labels.to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for (step, batch_slice), rows in zip(self.micro_batches(), self.rows(), strict=True):
            draws = generator(self.seed, "posterior", step, device=self.device)
            noise = BatchNoise(draws, self.batch_size, batch_slice)
            indices = self.indices(step, batch_slice, self.device)
            yield self.split.inputs(rows, noise), self.labels[indices]

    def orders(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Of each piece, which examples it trains on, and which of them are mirrored."""
        for piece in self.micro_batches():
            yield self.indices(*piece, device), self.flipped(*piece, device)

    def rows(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of the examples of each piece, on the device."""
        if self.tensors is not None:
            for order in self.orders(self.device):
                yield pick(self.tensors, *order)
            return
        reader = _Reader(self.split.tensors)
        pin = self.device.type == "cuda"
        orders = ((n.numpy(), None if f is None else f.numpy()) for n, f in self.orders(CPU))
        for rows in read_ahead(reader, orders, self.workers, pin=pin):
            yield {name: row.to(self.device, non_blocking=True) for name, row in rows.items()}
