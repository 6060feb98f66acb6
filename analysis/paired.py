"""Paired comparisons over shared seeds: t intervals and t tests of log ratios and of differences."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eltlab.analysis.metrics import HELD_OUT


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


def why_no_logarithm(seeds: pd.DataFrame, metric: str) -> pd.Series:
    """Why an arm has no ratio, tax or power law: a line for each arm that is not above 0 by its error.

    An unbiased distance may be below 0, and near 0 its ratios are noise. All values of an arm at one loop
    count must be above 0, and so must their mean by its error: half the t interval over seeds, or for one
    seed 1.96 standard errors. Without either there is no ratio. The held-out loss is above 0 by definition.

    seeds: lines of `points.seed_points`. Returns the reasons, indexed by arm; empty if all arms have ratios.
    """
    found = seeds.groupby(["arm", "requested"], sort=False).agg(
        least=(metric, "min"),
        mean=(metric, "mean"),
        deviation=(metric, "std"),
        count=(metric, "count"),
        error=("standard_error", "mean"),
    )
    interval = half_interval(found["deviation"], found["count"])
    half = (1.96 * found["error"]).where(found["count"] == 1, interval)
    half = 0 * half.fillna(0) if metric == HELD_OUT else half
    reasons = pd.Series("is not above 0 by its error", found.index)
    reasons = reasons.mask(half.isna() & (found["least"] > 0), "has one seed and no standard error")
    reasons = reasons[~((found["least"] > 0) & (found["mean"] > half))]
    reasons = reasons.groupby("arm", sort=False).first()
    return metric + " of " + reasons.index.to_series().astype(str) + " " + reasons
