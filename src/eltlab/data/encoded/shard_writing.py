"""Encodes images into the missing shards of a set. Any number of processes can share the work."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import SPLITS, Encoding
from eltlab.data.encoded.shard_files import list_shards, tensor_dtype, tensor_names, write_shard
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.tokenizer import FrozenTokenizer, adapt_to_clips


@dataclass
class Pace:
    """How fast one process encoded. unit: "images" or "clips"."""

    unit: str
    images: int = 0
    seconds: float = 0.0
    network: float = 0.0  # seconds in the tokenizer; the rest is waiting for pixels or the disk

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        rate, share = self.images / seconds, self.network / seconds
        return f"{self.images:,} {self.unit}: {rate:,.1f} {self.unit}/s, {share:.0%} in the network"


def encode_missing(
    out: Path, encoding: Encoding, images: dict[str, Images], tokenizer: FrozenTokenizer, batch: int
) -> Pace:
    """Writes those missing shards that are this rank's, each whole or not at all."""
    mine = list_shards(encoding)[ranks.rank() :: ranks.world_size()]
    missing = [shard for shard in mine if not (out / shard[0]).is_file()]
    total, todo = (sum(len(rows) for _, _, rows in shards) for shards in (mine, missing))
    unit = example_unit(images["train"].shape)
    pace, started = Pace(unit), time.monotonic()
    with Bar("encode", total, total - todo, unit) as bar:
        for split in SPLITS:
            batches = [
                (name, rows, rows[first : first + batch])
                for name, of, rows in missing
                if of == split
                for first in range(0, len(rows), batch)
            ]
            # Decodes the next images while the network encodes a batch.
            decoded = images[split].read_batches([list(part) for _, _, part in batches])
            encoded: list[dict[str, Tensor]] = []
            for (name, rows, part), pixels in zip(batches, decoded, strict=True):
                entered = time.monotonic()
                encoded.append(encode_batch(pixels, encoding, tokenizer))
                pace.network += time.monotonic() - entered
                pace.images += len(part)
                if part[-1] == rows[-1]:
                    tensors = {key: torch.cat([e[key] for e in encoded]) for key in encoded[0]}
                    labels = images[split].labels[rows.start : rows.stop].to(torch.int32)
                    write_shard(out / name, tensors | {LABELS: labels})
                    encoded = []
                pace.seconds = time.monotonic() - started
                bar.update(total - todo + pace.images)
    return pace


def encode_batch(pixels: Tensor, encoding: Encoding, tokenizer: FrozenTokenizer) -> dict[str, Tensor]:
    """uint8 images or clips → the tensors of a shard without labels, on the CPU."""
    pixels = pixels.to(tokenizer.device)
    adapted = adapt_to_clips(tokenizer, encoding.source.frames)
    inputs = {"": pixels} | ({FLIPPED: pixels.flip(-1)} if encoding.flips else {})
    tensors = {}
    for ending, part in inputs.items():
        encoded = adapted.encode(part)
        values = [encoded] if isinstance(encoded, Tensor) else [v for v in encoded if v is not None]
        for name, value in zip(tensor_names(encoding), values, strict=True):
            tensors[name + ending] = value.to(tensor_dtype(encoding)).cpu()
    return tensors
