"""Locks on files, and writes that a kill cannot leave half done."""

import fcntl
import glob
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on path, which ends with the process even if it is killed.
    Yields True, or at once False if it is taken and wait is off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:  # closing is not enough: a child forked meanwhile has a copy of the descriptor
            fcntl.flock(file, fcntl.LOCK_UN)


def write_atomic(path: Path, content: bytes | str) -> None:
    data = content.encode() if isinstance(content, str) else content
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary path in the same folder, which is flushed and renamed to path after the block.

    An exception in the block leaves path as it was. keep: a lock; if path exists when it is acquired, the
    file of the other process is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    # From the host and process id, _remove_leftovers knows whether the writer is still running.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with file_lock(keep) if keep is not None else nullcontext():
            if keep is None or not path.exists():
                os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # the user knows path, not the temporary name
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files of processes on this host that were killed while writing path."""
    prefix = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        pid = leftover.name.removeprefix(prefix).removesuffix(".tmp")
        try:
            os.kill(int(pid), 0)  # signal 0 only checks that the process exists
        except ProcessLookupError:
            leftover.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue
