"""Arms and their points: what figures and tables begin with.

An arm is what the runs of one name are over their seeds. A point is an arm at a loop count or a loop
schedule: its quality and costs, mean over seeds, with the 95 % t interval (bootstrap is too narrow at
three seeds).
"""

from os.path import commonprefix
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eltlab.common.errors import UserError
from eltlab.runs import result_table

QUALITY = ("fid", "fvd", "fd_classifier")  # less is better; the first that the rows have is taken
COSTS = {
    "params_total": "parameters",
    "macs_per_sample": "MACs per sample",
    "train_flops_total": "training FLOPs",
}
ALIKE = 1.05
UNIQUE, VANILLA = "unique layers", "vanilla loop"
KINDS = {
    "final": VANILLA,
    "ilsd": "elastic, ILSD",
    "deep": "elastic, deep",
    "random_depth": "elastic, random depth",
}
FACTS = [
    "kind",
    "data",
    "objective",
    "width",
    "depth",
    "unique_layers",
    "loops_train",
    "params_total",
    "images_seen",
]
MEANS = ["loops", "macs_per_sample", "train_flops_total"]


def quality_of(table: pd.DataFrame, asked: str | None = None) -> str:
    """The metric that is drawn: the one asked for, else the first of QUALITY. Raises UserError for a
    table that has none."""
    there = [name for name in (*QUALITY, "kid") if name in table and table[name].notna().any()]
    if asked is not None and asked not in there:
        raise UserError(
            f"metric={asked}: no such distance in the rows; they have {', '.join(there) or 'none'}"
        )
    if asked is None and not there:
        raise UserError(
            f"the rows have none of {', '.join(QUALITY)}: evaluate the runs first, by python -m "
            "eltlab.evaluate run=DIR"
        )
    return asked or there[0]


def kinds(rows: pd.DataFrame) -> pd.Series:
    """What kind of arm each row is of: unique layers, vanilla loop, or elastic by its supervision."""
    looped = rows["supervision"].map(KINDS).fillna("elastic, " + rows["supervision"])
    return looped.where(rows["loops_train"] > 1, UNIQUE)


def per_seed(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> pd.DataFrame:
    """One line an arm, loop count (or schedule) and training seed.

    Sampling seeds of one training seed are no independent runs: they are averaged. Halting stands under
    the loops that it spent. Raises UserError for rows that cannot be compared (`results.comparable`).

    Columns: arm, asked (the loop count or the schedule), seed, kind, width, depth (layers of a pass at
    this loop count), unique_layers, loops_train, loops, the costs, images_seen, the metric, accuracy.
    """
    rows = named(result_table.comparable(table, protocol))
    metric = quality_of(rows, metric)
    rows = rows.dropna(subset=[metric])
    rows = rows.assign(
        kind=kinds(rows),
        # Layers before and after the loop are passed once, whatever the loop count.
        depth=rows["depth"] - rows["unique_layers"] * (rows["loops_train"] - rows["loops"]),
    )
    how: dict[str, str] = dict.fromkeys([*MEANS, metric, "accuracy"], "mean")
    how |= dict.fromkeys(FACTS, "first")
    return rows.groupby(["arm", "asked", "seed"], sort=False).agg(how).reset_index()


def points(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> pd.DataFrame:
    """One line an arm and loop count (or schedule): `per_seed` averaged over seeds.

    Columns: those of per_seed but seed; seeds (how many), and plus_minus, half of the 95 % t interval
    of the metric's mean; NaN for one seed, of which no interval exists.
    """
    seeds = per_seed(table, metric, protocol)
    metric = quality_of(seeds, metric)
    how: dict[str, Any] = {name: (name, "mean") for name in (*MEANS, metric, "accuracy")}
    how |= {name: (name, "first") for name in FACTS}
    how |= {"seeds": ("seed", "nunique"), "plus_minus": (metric, "std")}
    lines = seeds.groupby(["arm", "asked"], sort=False).agg(**how).reset_index()
    lines["plus_minus"] = half_interval(lines["plus_minus"], lines["seeds"])
    return lines


def half_interval(deviation: Any, count: Any) -> Any:
    """Half of the 95 % t interval of a mean: of samples with this standard deviation, and so many."""
    count = np.asarray(count, dtype=float)
    freedom = np.where(count > 1, count - 1, np.nan)
    return stats.t.ppf(0.975, freedom) * deviation / np.sqrt(count)


def named(rows: pd.DataFrame) -> pd.DataFrame:
    """Comparable rows with the name of their arm, and asked: the loop count or the schedule.

    Loop schedules and halting are arms of their own. The one place that names arms, so that points,
    pictures and diagnostics of one table call them alike.
    """
    steady = rows["loop_schedule"] == "constant"
    halted = rows["loop_schedule"].str.contains("halting")
    arm = rows["name"].where(steady, rows["name"] + " " + rows["loop_schedule"])
    arm = arm.where(~halted, rows["name"] + " halting")
    names = list(arm.unique())
    short = dict(zip(names, shortened(names), strict=True))
    asked = counts(rows["loops"]).where(steady, rows["loop_schedule"])
    return rows.assign(arm=arm.map(short), asked=asked)


def shortened(names: list[str]) -> list[str]:
    """The names without the words ("/" and "-" end one) that all of them begin with. A word that begins
    with a digit is a number, or the end of one: it stays with what is before it."""
    shared = commonprefix(sorted(set(names))) if len(set(names)) > 1 else ""  # noqa: RUF071
    for cut in range(len(shared), 0, -1):
        if shared[cut - 1] in "/-" and all(name[cut : cut + 1].isalpha() for name in names):
            return [name[cut:] for name in names]
    return names


def with_logarithms(lines: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The same lines. Raises UserError where a value of the metric has no logarithm, as KID may."""
    bad = int((lines[metric] <= 0).sum())
    if bad:
        raise UserError(
            f"metric={metric}: {bad} of {len(lines)} values are at or below 0 and have no logarithm; take "
            "another metric"
        )
    return lines


def alike(one: Any, other: Any) -> Any:
    """Whether two costs are as good as equal: then they were matched."""
    return np.maximum(one, other) <= ALIKE * np.minimum(one, other)


def full(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of each arm at the loop count that it was trained for; perhaps none."""
    return lines[lines["asked"] == counts(lines["loops_train"])]


def constant(lines: pd.DataFrame) -> pd.Series:
    """Which lines are of a constant loop count: no schedule, no halting."""
    return lines["asked"] == counts(lines["loops"])


def counts(loops: pd.Series) -> pd.Series:
    """Loop counts as text: 4, not 4.0, whatever else stands in the column."""
    return loops.map("{:g}".format)


def caption(
    table: pd.DataFrame,
    metric: str | None = None,
    protocol: str | None = None,
    shown: str = "95 % t intervals",
) -> str:
    """What a figure of these rows has to say of itself: data, metric, samples, seeds and protocol.

    shown: what it shows of several seeds.
    """
    rows = result_table.comparable(table, protocol)
    metric = quality_of(rows, metric)
    first = rows.dropna(subset=[metric]).iloc[0]
    of_each = rows.groupby("name")["seed"].nunique()
    few, many = of_each.min(), of_each.max()
    seeds = f"n = {many}" if few == many else f"n = {few} to {many}"
    bars = shown if many > 1 else "one seed: no interval"
    return (
        f"{first['data']}, {first['objective']}; {metric} of {int(first['samples'])} samples, "
        f"{int(first['steps'])} steps, guidance {first['guidance']:g}; {seeds} seed{'s' * bool(many > 1)}, "
        f"{bars}; protocol {first['protocol']}"
    )
