"""The cache folder, files that are made once, and the digests in their names."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from eltlab.common.files import atomic_path, file_lock


def cache_dir() -> Path:
    """$ELTLAB_CACHE, or ~/.cache/eltlab: everything that is made, measured or downloaded once."""
    return Path(os.environ.get("ELTLAB_CACHE") or Path.home() / ".cache" / "eltlab")


def make_once(path: Path, make: Callable[[Path], None]) -> None:
    """Calls make(temporary) unless path exists, and renames temporary to path. One process makes the file."""
    with file_lock(path.with_suffix(".lock")):
        if not path.is_file():
            with atomic_path(path) as temporary:
                make(temporary)


def cached_array(path: Path, write: Callable[[BinaryIO], None], mapped: bool = False) -> np.ndarray:
    """The array in a .npy file, which write creates unless it exists.
    mapped: pages are read when used and shared by processes. Changes do not reach the file."""

    def make(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write(file)

    make_once(path, make)
    return np.load(path, mmap_mode="c" if mapped else None)


def digest(*parts: Any) -> str:
    """Twelve hex digits that hash an array's type, shape and bytes, and any other value's repr."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()[:12]
