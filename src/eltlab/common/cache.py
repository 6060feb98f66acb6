"""The cache folder, and files that are made once."""

import os
from collections.abc import Callable
from pathlib import Path

from eltlab.common.atomic_files import atomic_path
from eltlab.common.file_locks import file_lock


def cache_dir() -> Path:
    """$ELTLAB_CACHE, or ~/.cache/eltlab: codebooks, classifiers and reference features."""
    return Path(os.environ.get("ELTLAB_CACHE") or Path.home() / ".cache" / "eltlab")


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Calls make(temporary) unless path exists, and renames temporary to path.

    If several processes call it, one makes the file and the others wait for it.
    """
    with file_lock(path.with_suffix(".lock")):
        if not path.is_file():
            with atomic_path(path) as temporary:
                make(temporary)
