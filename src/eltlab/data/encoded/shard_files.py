"""The shards of an encoded set, safetensors with the rows of consecutive images: written, read, checked."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from eltlab.common.disk_cache import cache_dir, digest, make_once
from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path, write_atomic
from eltlab.common.progress import Bar
from eltlab.common.tensor_files import read_tensors
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import LOCK, SPLITS, Encoding, Manifest, Shard


def tensor_names(encoding: Encoding) -> list[str]:
    """The tensors of an image, without their FLIPPED twins."""
    if encoding.kind == "tokens":
        return ["ids"]
    return ["mean", "logvar"] if encoding.variance else ["mean"]


def tensor_dtype(encoding: Encoding) -> torch.dtype:
    """float16 for latents, whose rounding error is below a thousandth of their deviation."""
    if encoding.kind == "latents":
        return torch.float16
    assert encoding.codebook is not None
    return torch.int16 if encoding.codebook <= 2**15 else torch.int32


def layout(encoding: Encoding, count: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in a shard of count images."""
    row = (count, *encoding.shape), tensor_dtype(encoding)
    endings = ("", FLIPPED) if encoding.flips else ("",)
    tensors = {name + ending: row for ending in endings for name in tensor_names(encoding)}
    return tensors | {LABELS: ((count,), torch.int32)}


def list_shards(encoding: Encoding) -> list[tuple[str, str, range]]:
    """(file, split, its images) of every shard, in order."""
    return [
        (f"{split}-{number:05}.safetensors", split, images[first : first + encoding.shard])
        for split in SPLITS
        for images in [range(encoding.counts[split])]
        for number, first in enumerate(images[:: encoding.shard])
    ]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a whole shard or nothing. Raises UserError if it cannot be written. If another process
    has written it in the meantime, that file stays: a manifest may contain its hash."""
    content = save({name: value.contiguous() for name, value in tensors.items()})
    try:
        with atomic_path(path, keep=path.parent / LOCK) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path}: not written ({error.strerror}); free disk space and run the same command to continue"
        ) from error


def read_shard(path: Path, encoding: Encoding, count: int) -> dict[str, Tensor]:
    """The tensors of a shard, mapped into memory. Raises UserError if it does not have this layout."""
    tensors, _ = read_tensors(path, "delete it, and encode again")
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    wanted = layout(encoding, count)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            what = f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
            raise corrupt_shard(path, what)
    return tensors


def corrupt_shard(path: Path, what: str) -> UserError:
    return UserError(f"{path}: a corrupt shard ({what}); delete it, and encode again")


def check_set(manifest: Manifest, again: bool = False) -> None:
    """Checks every shard, unless exactly these files were checked before. If several processes call it, one
    checks and the others wait. Raises UserError that names the shard. again: check in any case."""

    def check(temporary: Path) -> None:
        check_shards(manifest.root, manifest.encoding, manifest.shards)
        temporary.write_text(f"{manifest.root}\n")

    marker = _marker(manifest)
    if again:
        marker.unlink(missing_ok=True)
    make_once(marker, check)


def mark_checked(manifest: Manifest) -> None:
    """Tells `check_set` that these files were checked."""
    write_atomic(_marker(manifest), f"{manifest.root}\n")


def _marker(manifest: Manifest) -> Path:
    """The file in the cache whose existence says that exactly these files were checked."""
    paths = [manifest.root / shard.file for split in manifest.shards.values() for shard in split]
    stats = [path.stat() if path.is_file() else None for path in paths]
    # The time of change, unlike that of modification, cannot be set: it changes with the content.
    stamps = [stat and (stat.st_ino, stat.st_size, stat.st_ctime_ns) for stat in stats]
    return cache_dir() / "checked" / digest(manifest.id, stamps)


def check_shards(root: Path, encoding: Encoding, shards: Mapping[str, list[Shard]]) -> dict[str, list[Shard]]:
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
    """The shard with its hash. Raises UserError if it is missing or damaged, has a hash other than the
    expected one ("": any), or contains labels, ids or latents on which training would fail."""
    path = root / shard.file
    if not path.is_file():
        raise UserError(f"{path}: missing; run the same encode command, which writes missing shards")
    tensors = read_shard(path, encoding, shard.images)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if shard.sha256 not in ("", found):
        raise corrupt_shard(path, "its hash differs from the manifest's")
    limits = {LABELS: len(encoding.classes), "ids": encoding.codebook}
    for name, value in tensors.items():
        limit = limits.get(name.removesuffix(FLIPPED))
        if limit is None:
            if not value.isfinite().all():
                raise corrupt_shard(path, f"{name} is not finite everywhere")
        elif len(value) and not 0 <= int(value.min()) <= int(value.max()) < limit:
            raise corrupt_shard(path, f"{name} from {value.min()} to {value.max()}, not 0 to {limit - 1}")
    return shard._replace(sha256=found)
