"""Values of configuration keys and settings as text, so that mixed and missing ones can be compared."""

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
