"""The files of an encoded set: safetensors, each with the rows of consecutive images."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eltlab.common.atomic_files import atomic_path
from eltlab.common.cache import cache_dir, make_once
from eltlab.common.errors import UserError
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import LOCK, SPLITS, Encoding, Manifest, Shard


def names(encoding: Encoding) -> list[str]:
    """The tensors of an image, mirrored ones apart."""
    if encoding.kind == "tokens":
        return ["ids"]
    return ["mean", "logvar"] if encoding.variance else ["mean"]


def dtype_of(encoding: Encoding) -> torch.dtype:
    """Latents of unit variance lose under a thousandth in float16; ids take what they need."""
    if encoding.kind == "latents":
        return torch.float16
    assert encoding.codebook is not None
    return torch.int16 if encoding.codebook <= 2**15 else torch.int32


def layout(encoding: Encoding, count: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in a shard of count images."""
    kept, dtype = (count, *encoding.shape), dtype_of(encoding)
    tensors = {name: (kept, dtype) for name in names(encoding)}
    if encoding.flips:
        tensors |= {name + FLIPPED: (kept, dtype) for name in names(encoding)}
    return tensors | {LABELS: ((count,), torch.int32)}


def files(encoding: Encoding) -> list[tuple[str, str, range]]:
    """(file, split, its images) of every shard, in order."""
    return [
        (f"{split}-{first // encoding.shard:05}.safetensors", split, range(first, stop))
        for split in SPLITS
        for first in range(0, encoding.counts[split], encoding.shard)
        for stop in [min(first + encoding.shard, encoding.counts[split])]
    ]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or absent; where another process has written it meanwhile, that one stays, whose hash may be
    in a manifest already. Raises UserError where it cannot be written."""
    content = save({name: value.contiguous() for name, value in tensors.items()})
    try:
        with atomic_path(path, keep=path.parent / LOCK) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path}: not written ({error.strerror}); make room, and the same command goes on"
        ) from error


def read_shard(path: Path, encoding: Encoding, count: int) -> dict[str, Tensor]:
    """The tensors of a shard, mapped into memory. Raises UserError where they are not what they should."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise corrupt(path, str(error)) from error
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    wanted = layout(encoding, count)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise corrupt(
                path, f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
            )
    return tensors


def check_values(path: Path, tensors: Mapping[str, Tensor], encoding: Encoding) -> None:
    """Raises UserError for labels, ids or latents that training would fail on."""
    ranges = {LABELS: len(encoding.classes), "ids": encoding.codebook}
    for name, value in tensors.items():
        limit = ranges.get(name.removesuffix(FLIPPED))
        if limit is None:
            if not value.isfinite().all():
                raise corrupt(path, f"{name} is not finite everywhere")
        elif len(value) and not 0 <= int(value.min()) <= int(value.max()) < limit:
            raise corrupt(path, f"{name} from {value.min()} to {value.max()}, not 0 to {limit - 1}")


def corrupt(path: Path, what: str) -> UserError:
    return UserError(f"{path}: a corrupt shard ({what}); delete it, and encode again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_shard(root: Path, shard: Shard, encoding: Encoding) -> Shard:
    """The shard with its hash. Raises UserError where it is not whole, or has another hash than it is said
    to have (none: "")."""
    path = root / shard.file
    if not path.is_file():
        raise UserError(f"{path}: missing; encode again, which makes what is not there")
    tensors = read_shard(path, encoding, shard.images)
    found = sha256(path)
    if shard.sha256 not in ("", found):
        raise corrupt(path, "its hash differs from the manifest's")
    check_values(path, tensors, encoding)
    return shard._replace(sha256=found)


def check_set(manifest: Manifest, again: bool = False) -> None:
    """Reads every shard and checks it, unless this very set of files was checked before; of several
    processes one does and the others wait.

    Raises UserError naming the shard.
    """
    shards = [shard for name in SPLITS for shard in manifest.shards[name]]

    def check(marker: Path) -> None:
        done = 0
        with Bar("check shards", sum(shard.images for shard in shards), unit="examples") as bar:
            for shard in shards:
                check_shard(manifest.root, shard, manifest.encoding)
                done += shard.images
                bar.update(done)
        write_marker(marker, manifest)

    marker = marker_of(manifest)
    if again:
        marker.unlink(missing_ok=True)
    make_once(marker, check)


def mark_checked(manifest: Manifest) -> None:
    """Spares `check_set` what its caller has just done."""
    make_once(marker_of(manifest), lambda marker: write_marker(marker, manifest))


def marker_of(manifest: Manifest) -> Path:
    """The file of the cache that says that these very files were checked."""
    shards = [shard for name in SPLITS for shard in manifest.shards[name]]
    key = digest(manifest.id, [stamp(manifest.root / shard.file) for shard in shards])
    return cache_dir() / "checked" / key


def write_marker(marker: Path, manifest: Manifest) -> None:
    marker.write_text(f"{manifest.root}\n")


def stamp(path: Path) -> tuple[int, ...]:
    """Changes with every change of the file; empty where there is none."""
    with suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_ctime_ns
    return ()
