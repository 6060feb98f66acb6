"""The splits of an encoded set: read from mapped files, or loaded onto the device."""

from copy import copy

import torch
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.machine_facts import physical_memory
from eltlab.common.seeds import SampleNoise, fold
from eltlab.data.batches import FLIPPED, LABELS, Rows, select_rows, to_inputs
from eltlab.data.encoded.manifest import TOKENIZER, Manifest
from eltlab.data.encoded.shard_files import layout, read_shard
from eltlab.data.images.image_files import MEMORY_SHARE
from eltlab.data.images.image_set import choose_subset
from eltlab.data.tokenizers.tokenizer import Tokenizer, adapt_to_clips
from eltlab.data.tokenizers.tokenizer_files import load_tokenizer


def load_set_tokenizer(manifest: Manifest) -> Tokenizer:
    """The tokenizer that encoded the set; for clips, applied to each frame. Raises UserError if the file in
    the folder is damaged or holds a different tokenizer."""
    path = manifest.root / TOKENIZER
    tokenizer = load_tokenizer(path)
    wanted = manifest.encoding.tokenizer["hash"]
    if tokenizer.hash != wanted:
        raise UserError(
            f"{path}: holds tokenizer {tokenizer.hash}, but the set was encoded with {wanted}; put that "
            "tokenizer back, or encode again"
        )
    return adapt_to_clips(tokenizer, manifest.encoding.source.frames)


class MappedRows:
    """The rows of one tensor, stored in several mapped files. `mapped[indices]` reads only those rows.

    chosen: the numbers of the rows that this object has, ascending; None: all.
    """

    def __init__(self, parts: list[Tensor], per_file: int, chosen: Tensor | None = None) -> None:
        self.parts, self.per_file = parts, per_file
        self.chosen = torch.arange(sum(map(len, parts))) if chosen is None else chosen

    def __getitem__(self, indices: Tensor) -> Tensor:
        out = self.parts[0].new_empty((len(indices), *self.parts[0].shape[1:]))
        rows = self.chosen[indices]
        files = rows // self.per_file
        for file in files.unique().tolist():
            in_file = files == file
            out[in_file] = self.parts[file][rows[in_file] - file * self.per_file]
        return out

    def load(self, device: torch.device) -> Tensor:
        """All rows on the device, copied file by file: the memory of the host holds one file at a time."""
        out = self.parts[0].new_empty((len(self.chosen), *self.parts[0].shape[1:]), device=device)
        counts = torch.bincount(self.chosen // self.per_file, minlength=len(self.parts)).tolist()
        places = zip(self.parts, self.chosen.split(counts), out.split(counts), strict=True)
        for number, (part, rows, place) in enumerate(places):
            place.copy_(part if len(rows) == len(part) else part[rows - number * self.per_file])
        return out


class EncodedSplit:
    """One split: labels int64 [N] in memory, and the encoded images in mapped files. origin identifies the
    set that a run is trained on."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        """Raises UserError if a shard is missing or differs from the manifest."""
        self.encoding, self.name, self.origin = manifest.encoding, split, manifest.id
        root, listed = manifest.root, manifest.shards[split]
        shards = [read_shard(root / shard.file, self.encoding, shard.images) for shard in listed]
        self.labels = torch.cat([shard[LABELS] for shard in shards]).long()
        self.numbers = torch.arange(len(self.labels))  # of the examples, in the whole split
        self.tensors = {
            name: MappedRows([shard[name] for shard in shards], self.encoding.shard)
            for name in layout(self.encoding, 0)
            if name != LABELS
        }

    def __len__(self) -> int:
        return len(self.labels)

    def nbytes(self, flip: bool) -> int:
        """The size of the tensors that training reads, without the labels."""
        return sum(part.nbytes for rows in self._mapped(flip).values() for part in rows.parts)

    def fits(self, device: torch.device, flip: bool) -> bool:
        """Whether each process of this node can load the split onto its device."""
        if device.type == "cuda":  # each process has a GPU of its own
            _, memory = torch.cuda.mem_get_info(device)
        else:
            memory = physical_memory() // ranks.local_world_size()
        return self.nbytes(flip) <= memory // MEMORY_SHARE

    def rows(self, device: torch.device, flip: bool, in_memory: bool | None) -> dict[str, Rows]:
        """The tensors that training reads. in_memory: load them onto the device; None: if they fit."""
        if in_memory is None:
            in_memory = self.fits(device, flip)
        mapped = self._mapped(flip).items()
        return {name: rows.load(device) if in_memory else rows for name, rows in mapped}

    def _mapped(self, flip: bool) -> dict[str, MappedRows]:
        return {n: rows for n, rows in self.tensors.items() if flip or not n.endswith(FLIPPED)}

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        """Inputs of the objective. A latent is always the same sample of its posterior, also in a part."""
        chosen = torch.as_tensor(indices)
        noise = SampleNoise(fold("posterior"), self.numbers[chosen].tolist())
        return to_inputs(select_rows(self.tensors, chosen, None), noise)

    def part(self, indices: Tensor) -> "EncodedSplit":
        """The examples at these ascending indices, as a part of the same set."""
        part = copy(self)
        part.labels, part.numbers = self.labels[indices], self.numbers[indices]
        part.tensors = {
            name: MappedRows(rows.parts, rows.per_file, part.numbers) for name, rows in self.tensors.items()
        }
        return part

    def subset(self, most: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of at most this many examples, chosen by a fixed seed, for validation."""
        chosen = torch.from_numpy(choose_subset(min(most, len(self)), len(self), self.name))
        return self[chosen], self.labels[chosen]
