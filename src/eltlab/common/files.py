"""Files that are whole or absent, locks that die with their process, and the cache."""

import fcntl
import glob
import hashlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes to a temporary name beside path and renames: a kill leaves the old file or the new."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; flushed to disk and renamed to path where the block succeeds.

    keep: a lock under which a file that has come to path meanwhile stays, and this one is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with file_lock(keep) if keep is not None else nullcontext():
            if keep is None or not path.exists():
                os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # a name that only we know
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Has make write path, through `atomic_path`, unless it is there; of several processes that ask at
    once one makes it and the others wait."""
    with file_lock(path.with_suffix(".lock")):
        if not path.is_file():
            with atomic_path(path) as temporary:
                make(temporary)


def _sweep(path: Path) -> None:
    """Removes what processes of this machine that were killed while writing path left beside it."""
    prefix = f".{path.name}.{platform.node()}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        pid = left.name.removeprefix(prefix).removesuffix(".tmp")
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
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
