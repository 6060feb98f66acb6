"""A short hash of arrays and values."""

import hashlib
from typing import Any

import numpy as np


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
