"""Numbers with their intervals, which print as text, and who of two is ahead in words.

Every interval is the 95 % t interval over seeds (`paired`). Lower is better for every metric.
"""

import math

import numpy as np
import pandas as pd

from eltlab.analysis.metrics import format_quality
from eltlab.analysis.paired import half_interval


class Value(float):
    """A mean, a ratio or a difference: a number in conditions, text with its interval in sentences.

    low, high: the ends of the interval; NaN for one seed. seeds: how many it is made of.
    """

    def __new__(cls, number: float, low: float, high: float, seeds: int, text: str) -> "Value":
        return super().__new__(cls, number)

    def __init__(self, number: float, low: float, high: float, seeds: int, text: str) -> None:
        self.low, self.high, self.seeds, self.text = low, high, seeds, text

    def __str__(self) -> str:
        return self.text


def mean_over_seeds(seeds: pd.Series, error: float = float("nan")) -> Value:
    """The mean of values by seed. error: the standard error of the measurement, shown for one seed."""
    mean, half = float(seeds.mean()), float(half_interval(seeds.std(), len(seeds)))
    return Value(mean, mean - half, mean + half, len(seeds), format_quality(mean, half, error))


def mean_difference(one: pd.Series, other: pd.Series) -> Value:
    """The mean of one − other over the seeds that both have."""
    found = (one - other).dropna()
    mean, half = float(found.mean()), float(half_interval(found.std(), len(found)))
    form = "{:+,.2f}" if abs(mean) >= 1 else "{:+.4f}"
    return with_interval(form, mean, mean - half, mean + half, len(found))


def with_interval(form: str, number: float, low: float, high: float, seeds: int) -> Value:
    """The value that prints as 1.053 (1.041 to 1.066)."""
    span = f"{form} to {form}".format(low, high) if math.isfinite(low) else "no interval: one seed"
    return Value(number, low, high, seeds, f"{form.format(number)} ({span})")


def in_words(one: str, other: str, metric: str, found: Value, equal: int) -> str:
    """Who is ahead and by how much, or that the rows cannot tell them apart: a clause without a full stop.

    one, other: what they are called. found: their ratio (equal is 1) or their difference (equal is 0).
    """
    size = f"the {'ratio' if equal else 'difference'} of their {metric} is {found}"
    side = "ahead of" if found < equal else "behind"
    if not np.isfinite(found.low):
        return f"{one} is {side} {other} on the one seed that both have: {size}"
    if found.low <= equal <= found.high:
        return f"the rows cannot tell {one} from {other}: {size}"
    return f"{one} is {side} {other}: {size}"
