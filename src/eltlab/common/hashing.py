"""A short hash of arrays and values."""

import hashlib
from typing import Any

import numpy as np


def digest(*parts: Any) -> str:
    """Twelve hex digits: of an array's type, shape and bytes, and of any other value's repr."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            total.update(f"{part.dtype}{part.shape}".encode())
            total.update(np.ascontiguousarray(part).tobytes())
        else:
            total.update(repr(part).encode())
    return total.hexdigest()[:12]
