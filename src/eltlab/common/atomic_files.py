"""Writes files so that a kill leaves the old file or the new one, never a part."""

import glob
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from eltlab.common.file_locks import file_lock


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
