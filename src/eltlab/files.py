"""Files that are whole or absent, locks that die with their process, and the cache."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes to a temporary name beside path and renames: a kill leaves the old file or the new."""
    data = content.encode() if isinstance(content, str) else content
    with renamed(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary path to write to; renamed to path (and flushed to disk) where the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on path; yields False at once where wait is off and it is taken.

    flock: the kernel releases it when the process ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def cache_dir() -> Path:
    """$ELTLAB_CACHE, or ~/.cache/eltlab: codebooks, classifiers and reference features."""
    return Path(os.environ.get("ELTLAB_CACHE") or Path.home() / ".cache" / "eltlab")


def digest(*parts: Any) -> str:
    """Twelve hex digits of arrays (shape, type and bytes) and of anything else as text."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()[:12]
