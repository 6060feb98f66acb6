"""Paired comparisons over shared seeds: t intervals and t tests of log ratios and of differences."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eltlab.analysis.metrics import HELD_OUT, UNBIASED


def half_interval(deviation: Any, count: Any) -> Any:
    """Half the 95 % t interval of the mean of count samples with this standard deviation."""
    count = np.asarray(count, dtype=float)
    freedom = np.where(count > 1, count - 1, np.nan)
    return stats.t.ppf(0.975, freedom) * deviation / np.sqrt(count)


def t_test(values: pd.DataFrame) -> pd.Series:
    """The p-value of each column's mean being 0, by a two-sided t test; NaN for one value."""
    count = values.count()
    with np.errstate(divide="ignore", invalid="ignore"):
        t = values.mean() / (values.std() / np.sqrt(count))
        return pd.Series(2 * stats.t.sf(np.abs(t), count - 1), index=values.columns)


def ratio_intervals(logs: pd.DataFrame) -> pd.DataFrame:
    """The geometric mean of each pair's ratio, and its 95 % t interval over seeds.

    logs: [seeds, pairs], log(one / other) of each seed; NaN if the pair does not share the seed. Returns
    one line per pair: ratio, ratio_low and ratio_high, which are NaN for one seed.
    """
    mean, half = logs.mean(), half_interval(logs.std(), logs.count())
    ends = {"ratio": mean, "ratio_low": mean - half, "ratio_high": mean + half}
    return pd.DataFrame(ends).map(np.exp)


def is_above_zero(values: pd.Series, errors: pd.Series, metric: str) -> bool:
    """Whether the values of an arm, one per seed, have ratios: all are above 0, and so is their mean by its
    error.

    An unbiased distance may be below 0, and near 0 its ratios are noise. Its error is half the t interval
    over seeds, or for one seed 1.96 times the standard error in errors (none if NaN).
    """
    if not (values > 0).all():
        return False
    if metric == HELD_OUT or metric not in UNBIASED:
        return True
    one = 1.96 * errors.iloc[0] if np.isfinite(errors.iloc[0]) else 0.0
    half = float(half_interval(values.std(), len(values))) if len(values) > 1 else one
    return bool(values.mean() > half)
