"""Locks that are released when the process that holds them ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock on path. Yields True, or at once False if it is taken and wait is off.

    The kernel releases a flock when the process ends, even if it is killed.
    """
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
