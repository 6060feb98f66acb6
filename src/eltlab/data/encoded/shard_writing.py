"""Images to the shards of an encoded set: resumable, shared by any number of processes."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import (
    ENCODING,
    LOCK,
    NAME,
    SPLITS,
    TOKENIZER,
    Encoding,
    Manifest,
    Shard,
    Source,
    parse_encoding,
    read_manifest,
)
from eltlab.data.encoded.shards import (
    check_set,
    check_shard,
    dtype_of,
    files,
    mark_checked,
    names,
    write_shard,
)
from eltlab.data.images.image_decoding import TRANSFORM
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.autoencoders import Autoencoder
from eltlab.data.tokenizers.codebooks import LatentCodebook
from eltlab.data.tokenizers.per_frame import over
from eltlab.data.tokenizers.tokenizer_files import Tokenizer, load_tokenizer, save_tokenizer

HASHES = ".hashes.json"  # of the shards of a set whose manifest was taken back


@dataclass
class Pace:
    """What encoding took of one process."""

    unit: str  # images or clips
    images: int = 0
    seconds: float = 0.0
    network: float = (
        0.0  # seconds of these in the tokenizer; in the rest it waited for pixels or the disk
    )

    def __str__(self) -> str:
        rate = self.images / max(self.seconds, 1e-9)
        share = 100 * self.network / max(self.seconds, 1e-9)
        return (
            f"{self.images:,} {self.unit}: {rate:,.1f} {self.unit}/s, {share:.0f} % in the network"
        )


def describe(
    images: dict[str, Images],
    classes: list[str],
    tokenizer: Tokenizer,
    source: dict[str, Any],
    flips: bool,
    shard: int,
) -> Encoding:
    """What the set will be. Raises UserError where the tokenizer does not fit the images' size."""
    *clip, channels, size, _ = images["train"].shape
    if size % tokenizer.factor:
        raise UserError(
            f"data.size={size}: tokenizer={tokenizer.name} makes one position of "
            f"{tokenizer.factor}x{tokenizer.factor} pixels; choose a multiple of {tokenizer.factor}"
        )
    side = size // tokenizer.factor
    latents = tokenizer.kind == "latents"
    return Encoding(
        kind=tokenizer.kind,
        shape=[*clip, tokenizer.channels, side, side] if latents else [math.prod(clip) * side**2],
        factor=tokenizer.factor,
        codebook=tokenizer.codebook,
        variance=isinstance(tokenizer, Autoencoder) and tokenizer.variance,
        flips=flips,
        shard=shard,
        classes=classes,
        counts={split: len(images[split]) for split in SPLITS},
        tokenizer={"name": tokenizer.name, "hash": tokenizer.hash},
        source=Source(
            size=size,
            channels=channels,
            transform=TRANSFORM,
            hashes={split: images[split].origin for split in SPLITS},
            **source,
        ),
    )


def begin(out: Path, encoding: Encoding, tokenizer: Tokenizer) -> None:
    """Says in the folder what it will hold. Raises UserError where it holds another encoding."""
    with file_lock(out / LOCK):
        path = out / ENCODING
        if path.is_file():
            refuse_another(out, encoding)
            reopen(out, encoding)
            restore_tokenizer(out / TOKENIZER, tokenizer)
            return
        # A kill may have left the tokenizer alone, or a part of it under a hidden name.
        left = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if left not in ([], [TOKENIZER]):
            raise UserError(f"out={out}: holds something else; choose an empty or a new folder")
        save_tokenizer(tokenizer, out / TOKENIZER)
        write_atomic(path, json.dumps(asdict(encoding), indent=1) + "\n")


def fitted_before(out: Path) -> LatentCodebook | None:
    """The codes that a set was begun with, where they lie there whole: fitted again without the cache that
    they are in, they may be others, and the set would be refused."""
    try:
        begun = parse_encoding(json.loads((out / ENCODING).read_text()))
        tokenizer = load_tokenizer(out / TOKENIZER)
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
    same = tokenizer.hash == begun.tokenizer["hash"]
    return tokenizer if same and isinstance(tokenizer, LatentCodebook) else None


def restore_tokenizer(path: Path, tokenizer: Tokenizer) -> None:
    """Writes the set's tokenizer again where its file is damaged, gone or another's."""
    try:
        if load_tokenizer(path).hash == tokenizer.hash:
            return
    except UserError:
        pass
    save_tokenizer(tokenizer, path)


def refuse_another(out: Path, encoding: Encoding) -> None:
    try:
        begun = parse_encoding(json.loads((out / ENCODING).read_text())).facts()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / ENCODING}: damaged; choose another out=") from error
    wanted = encoding.facts()
    differing = [key for key in wanted if wanted[key] != begun[key]]
    if differing:
        raise UserError(
            f"out={out}: holds another encoding ({', '.join(differing)} differ); choose another out="
        )


def reopen(out: Path, encoding: Encoding) -> None:
    """Takes a manifest back that does not hold: of a set that lacks shards, or one that was changed.

    Made again on another device a shard has other bits, so only those that are there are held to the
    hashes that they had; HASHES keeps these until there is a manifest again, whoever makes it.
    """
    known = standing(out, encoding)
    if known is not None and all((out / name).is_file() for name in known):
        return
    if known is None:
        known = kept_hashes(out)
    there = {name: sha256 for name, sha256 in known.items() if (out / name).is_file()}
    if there:
        write_atomic(out / HASHES, json.dumps(there))
    else:
        (out / HASHES).unlink(missing_ok=True)
    (out / NAME).unlink(missing_ok=True)


def standing(out: Path, encoding: Encoding) -> dict[str, str] | None:
    """The hash of each shard, of a manifest of this encoding; None where there is none."""
    try:
        manifest = read_manifest(out)
    except UserError:
        return None
    if manifest.encoding.facts() != encoding.facts():
        return None
    return {shard.file: shard.sha256 for split in SPLITS for shard in manifest.shards[split]}


def kept_hashes(out: Path) -> dict[str, str]:
    try:
        return dict(json.loads((out / HASHES).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def encode_missing(
    out: Path,
    encoding: Encoding,
    images: dict[str, Images],
    tokenizer: Tokenizer,
    batch: int,
    rank: int = 0,
    world: int = 1,
) -> Pace:
    """Writes those shards that are not there and fall to this process, each whole or not at all."""
    mine = [file for n, file in enumerate(files(encoding)) if n % world == rank]
    left = [file for file in mine if not (out / file[0]).is_file()]
    total, todo = (sum(len(rows) for _, _, rows in some) for some in (mine, left))
    unit = example_unit(images["train"].shape)
    pace, begun = Pace(unit), time.monotonic()
    with Bar("encode", total, total - todo, unit) as bar:
        for split in SPLITS:
            shards = {name: rows for name, of, rows in left if of == split}
            for made in encoded(images[split], shards, encoding, tokenizer, batch, pace):
                if made is not None:
                    write_shard(out / made[0], made[1])
                pace.seconds = time.monotonic() - begun
                bar.update(total - todo + pace.images)
    return pace


def encoded(
    images: Images,
    shards: dict[str, range],
    encoding: Encoding,
    tokenizer: Tokenizer,
    batch: int,
    pace: Pace,
) -> Iterator[tuple[str, dict[str, Tensor]] | None]:
    """None after each batch, (name, tensors) of a shard after its last. Images are decoded while the
    network has those before them."""
    batches = [
        (name, rows[first : first + batch])
        for name, rows in shards.items()
        for first in range(0, len(rows), batch)
    ]
    decoded = images.read_batches([list(rows) for _, rows in batches])
    parts: list[dict[str, Tensor]] = []
    for (name, rows), pixels in zip(batches, decoded, strict=True):
        begun = time.monotonic()
        parts.append(encode_batch(pixels, encoding, tokenizer))
        pace.network += time.monotonic() - begun
        pace.images += len(rows)
        if rows[-1] != shards[name][-1]:
            yield None
        else:
            tensors = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            labels = images.labels[shards[name].start : shards[name].stop]
            yield name, tensors | {LABELS: labels.to(torch.int32)}
            parts = []


def encode_batch(pixels: Tensor, encoding: Encoding, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """uint8 images or clips to the tensors of a shard but for the labels, on the CPU."""
    pixels = pixels.to(tokenizer.device)
    whole = over(tokenizer, encoding.source.frames)
    seen = {"": pixels}
    if encoding.flips:
        seen[FLIPPED] = pixels.flip(-1)
    tensors = {}
    for ending, these in seen.items():
        made = whole.encode(these)
        values = [made] if isinstance(made, Tensor) else [part for part in made if part is not None]
        for name, value in zip(names(encoding), values, strict=True):
            tensors[name + ending] = value.to(dtype_of(encoding)).cpu()
    return tensors


def finish(out: Path, encoding: Encoding, again: bool = False) -> Manifest:
    """The manifest of a set whose shards are all there, each of them checked: now, or before and not again.

    Raises UserError where one is not as it should.
    """
    with file_lock(out / LOCK):
        if not (out / NAME).is_file():
            manifest = Manifest(out, encoding, checked(out, encoding, kept_hashes(out)))
            manifest.write()
            (out / HASHES).unlink(missing_ok=True)
            mark_checked(manifest)
            return manifest
    manifest = read_manifest(out)
    check_set(manifest, again)
    return manifest


def checked(out: Path, encoding: Encoding, known: dict[str, str]) -> dict[str, list[Shard]]:
    """The shards of each split; known: hashes that some of them must have."""
    shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    done = 0
    with Bar("check shards", sum(encoding.counts.values()), unit="examples") as bar:
        for name, split, rows in files(encoding):
            shard = Shard(name, len(rows), known.get(name, ""))
            shards[split].append(check_shard(out, shard, encoding))
            done += len(rows)
            bar.update(done)
    return shards
