"""Values of configuration keys and settings as text, so that mixed and missing ones can be compared."""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

UNSET = "unset"


def as_text(column: pd.Series) -> Any:
    """Values of any types, also mixed, as text; "unset" for a missing one."""
    return column.map(lambda value: UNSET if is_unset(value) else format_value(value)).astype(object)


def is_unset(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def format_value(value: Any) -> str:
    """4, not 4.0: pandas stores whole numbers as floats if a value is missing."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def natural_key(text: str) -> list[tuple[float, str]]:
    """Sorts names as people do: by the size of the numbers in them, lr1e-04 before lr0.01."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(float(part), "") if n % 2 else (0.0, part) for n, part in enumerate(parts)]


def name_omitted(why: str, names: Iterable[str], most: int = 12) -> str:
    """A sentence at the end of a caption that names what the figure omits; empty if it omits nothing."""
    names = sorted(names, key=natural_key)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f". {why}: {', '.join(names[:most])}{more}" if names else ""
