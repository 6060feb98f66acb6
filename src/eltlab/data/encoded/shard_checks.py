"""Checks every shard of an encoded set once: that it is there, whole, and has its hash and valid values."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from eltlab.common.cache import cache_dir, digest, make_once
from eltlab.common.errors import UserError
from eltlab.common.progress import Bar
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import Encoding, Manifest, Shard
from eltlab.data.encoded.shard_files import corrupt_shard, read_shard


def check_set(manifest: Manifest, again: bool = False) -> None:
    """Checks every shard, unless these very files were checked before. Of several processes, one checks and
    the others wait. Raises UserError that names the shard.

    again: check them in any case.
    """

    def check(marker: Path) -> None:
        check_shards(manifest.root, manifest.encoding, manifest.shards)
        _write_marker(marker, manifest)

    marker = _marker(manifest)
    if again:
        marker.unlink(missing_ok=True)
    make_once(marker, check)


def mark_checked(manifest: Manifest) -> None:
    """Tells `check_set` that these files were checked."""
    make_once(_marker(manifest), lambda marker: _write_marker(marker, manifest))


def check_shards(
    root: Path, encoding: Encoding, shards: Mapping[str, list[Shard]]
) -> dict[str, list[Shard]]:
    """The shards of each split with their hashes. Raises UserError that names the first bad shard."""
    checked: dict[str, list[Shard]] = {split: [] for split in shards}
    done = 0
    with Bar("check shards", sum(encoding.counts.values()), unit="examples") as bar:
        for split, listed in shards.items():
            for shard in listed:
                checked[split].append(check_shard(root, shard, encoding))
                done += shard.images
                bar.update(done)
    return checked


def check_shard(root: Path, shard: Shard, encoding: Encoding) -> Shard:
    """The shard with its hash. Raises UserError if it is missing or damaged, or has another hash than
    expected ("" expects none)."""
    path = root / shard.file
    if not path.is_file():
        raise UserError(f"{path}: missing; encode again, which makes what is not there")
    tensors = read_shard(path, encoding, shard.images)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if shard.sha256 not in ("", found):
        raise corrupt_shard(path, "its hash differs from the manifest's")
    _check_values(path, tensors, encoding)
    return shard._replace(sha256=found)


def _check_values(path: Path, tensors: Mapping[str, Tensor], encoding: Encoding) -> None:
    """Raises UserError for labels, ids or latents on which training would fail."""
    limits = {LABELS: len(encoding.classes), "ids": encoding.codebook}
    for name, value in tensors.items():
        limit = limits.get(name.removesuffix(FLIPPED))
        if limit is None:
            if not value.isfinite().all():
                raise corrupt_shard(path, f"{name} is not finite everywhere")
        elif len(value) and not 0 <= int(value.min()) <= int(value.max()) < limit:
            what = f"{name} from {value.min()} to {value.max()}, not 0 to {limit - 1}"
            raise corrupt_shard(path, what)


def _marker(manifest: Manifest) -> Path:
    """The file in the cache that says that these very files were checked."""
    shards = [shard for listed in manifest.shards.values() for shard in listed]
    key = digest(manifest.id, [_stamp(manifest.root / shard.file) for shard in shards])
    return cache_dir() / "checked" / key


def _write_marker(marker: Path, manifest: Manifest) -> None:
    marker.write_text(f"{manifest.root}\n")


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes with every change of the file. Empty if there is no file."""
    with suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_ctime_ns
    return ()
