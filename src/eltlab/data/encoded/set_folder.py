"""The folder of an encoded set: started, resumed by the same command only, and finished by a manifest."""

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
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
from eltlab.data.encoded.shard_files import check_set, check_shards, list_shards, mark_checked
from eltlab.data.images.image_decoding import TRANSFORM
from eltlab.data.images.image_files import Images
from eltlab.data.tokenizers.codebooks import LatentCodebook
from eltlab.data.tokenizers.tokenizer import FrozenTokenizer
from eltlab.data.tokenizers.tokenizer_files import load_tokenizer, save_tokenizer

HASHES = ".hashes.json"  # shard hashes of a withdrawn manifest


def describe_encoding(
    images: dict[str, Images],
    classes: list[str],
    tokenizer: FrozenTokenizer,
    source: dict[str, Any],
    flips: bool,
    shard: int,
) -> Encoding:
    """The encoding of a set. Raises UserError if the tokenizer's factor does not divide the image size."""
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
        variance=tokenizer.variance,
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


def start_set(out: Path, encoding: Encoding, tokenizer: FrozenTokenizer) -> None:
    """Starts the set in a folder, or resumes it. Raises UserError if it holds anything else."""
    with file_lock(out / LOCK):
        if (out / ENCODING).is_file():
            started, wanted = _read_encoding(out).identity(), encoding.identity()
            differing = ", ".join(key for key in wanted if wanted[key] != started[key])
            if differing:
                raise UserError(
                    f"out={out}: contains a different encoding ({differing} differ); choose a different out="
                )
            _withdraw_stale_manifest(out, encoding)
            with suppress(UserError):  # damaged or missing: it is written again
                if load_tokenizer(out / TOKENIZER).hash == tokenizer.hash:
                    return
            save_tokenizer(tokenizer, out / TOKENIZER)
            return
        # A process that was killed here left only the tokenizer, or part of it under a hidden name.
        left = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        if left not in ([], [TOKENIZER]):
            raise UserError(
                f"out={out}: contains files that are not an encoded set; choose an empty or new folder"
            )
        save_tokenizer(tokenizer, out / TOKENIZER)
        write_atomic(out / ENCODING, json.dumps(asdict(encoding), indent=1) + "\n")


def load_started_codebook(out: Path) -> LatentCodebook | None:
    """The k-means codebook with which the set was started, or None if it is missing or damaged. Fitted
    again without the cache, k-means may give different codes, with which the set cannot be resumed."""
    try:
        encoding, tokenizer = _read_encoding(out), load_tokenizer(out / TOKENIZER)
    except UserError:
        return None
    same = tokenizer.hash == encoding.tokenizer["hash"]
    return tokenizer if same and isinstance(tokenizer, LatentCodebook) else None


def _read_encoding(out: Path) -> Encoding:
    try:
        return parse_encoding(json.loads((out / ENCODING).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / ENCODING}: damaged; choose a different out=") from error


def _withdraw_stale_manifest(out: Path, encoding: Encoding) -> None:
    """Removes the manifest if shards are missing or if it was changed. A shard that is encoded again on
    another device may have different bits, so the new manifest requires the old hashes only of shards that
    still exist. HASHES stores them until then."""
    try:
        manifest = read_manifest(out)
    except UserError:
        manifest = None
    if manifest is None or manifest.encoding.identity() != encoding.identity():
        known = _read_hashes(out)
    else:
        known = {shard.file: shard.sha256 for split in SPLITS for shard in manifest.shards[split]}
        if all((out / name).is_file() for name in known):
            return
    present = {name: sha256 for name, sha256 in known.items() if (out / name).is_file()}
    write_atomic(out / HASHES, json.dumps(present))
    (out / NAME).unlink(missing_ok=True)


def _read_hashes(out: Path) -> dict[str, str]:
    try:
        return dict(json.loads((out / HASHES).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def finish_set(out: Path, encoding: Encoding, again: bool = False) -> Manifest:
    """The manifest of a set whose shards are all written. Raises UserError if a shard is damaged.
    again: check the shards even if they were checked before."""
    with file_lock(out / LOCK):
        if not (out / NAME).is_file():
            known = _read_hashes(out)
            shards: dict[str, list[Shard]] = {split: [] for split in SPLITS}
            for name, split, rows in list_shards(encoding):
                shards[split].append(Shard(name, len(rows), known.get(name, "")))
            manifest = Manifest(out, encoding, check_shards(out, encoding, shards))
            manifest.write()
            (out / HASHES).unlink(missing_ok=True)
            mark_checked(manifest)
            return manifest
    manifest = read_manifest(out)
    check_set(manifest, again)
    return manifest
