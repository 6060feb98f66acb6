"""Arms and their points, which all figures and tables start from.

An arm is all runs of one name, over their seeds. A point is an arm at one loop count or loop schedule: its
quality and costs, averaged over seeds, with a 95 % t interval (a bootstrap is too narrow for three seeds).
"""

from os.path import commonprefix
from typing import Any

import numpy as np
import pandas as pd

from eltlab.analysis.chosen_settings import (
    ChosenSetting,
    choose_settings,
    describe_settings,
    reported_rows,
    splits,
)
from eltlab.analysis.metrics import HELD_OUT, choose_metric
from eltlab.analysis.paired import half_interval
from eltlab.analysis.tuned_values import describe_tuned

COSTS = {
    "params_total": "parameters",
    "macs_per_sample": "MACs per sample",
    "train_flops_total": "training FLOPs",
}
ALIKE = 1.05  # costs within this ratio count as matched
UNIQUE, VANILLA = "unique layers", "vanilla loop"
KINDS = {
    "final": VANILLA,
    "ilsd": "elastic, ILSD",
    "deep": "elastic, deep",
    "random_depth": "elastic, random depth",
}
FACTS = [
    *("kind", "data", "objective", "width", "depth", "unique_layers", "loops_train"),
    *("params_total", "images_seen"),
]
MEANS = ["loops", "macs_per_sample", "train_flops_total"]


def arm_kinds(rows: pd.DataFrame) -> pd.Series:
    """The kind of arm of each row: unique layers, vanilla loop, or elastic with its supervision."""
    looped = rows["supervision"].map(KINDS).fillna("elastic, " + rows["supervision"])
    return looped.where(rows["loops_train"] > 1, UNIQUE)


def seed_points(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One line per arm, loop count (or schedule) and training seed.

    Sampling seeds of one training seed are averaged, because they are not independent runs. With
    halting, loops is the mean number that ran. Raises UserError if rows cannot be compared (`comparable`)
    or if an arm has several settings and nothing to choose one by (`choose_settings`).

    Columns: arm, requested (the loop count or schedule), seed, kind, width, depth (layers per pass at this
    loop count), unique_layers, loops_train, loops, the costs, images_seen, the metric, standard_error (of
    the metric; NaN if it was not measured), accuracy.
    """
    rows = name_arms(reported_rows(table, protocol))
    metric = choose_metric(rows, metric)
    rows = rows.dropna(subset=[metric])
    rows = rows.assign(
        kind=arm_kinds(rows),
        # Layers before and after the loop run once, whatever the loop count.
        depth=rows["depth"] - rows["unique_layers"] * (rows["loops_train"] - rows["loops"]),
        standard_error=rows.get(f"{metric}_se", float("nan")),
    )
    how: dict[str, str] = dict.fromkeys([*MEANS, metric, "standard_error", "accuracy"], "mean")
    how |= dict.fromkeys(FACTS, "first")
    return rows.groupby(["arm", "requested", "seed"], sort=False).agg(how).reset_index()


def points(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One line per arm and loop count (or schedule): `seed_points` averaged over seeds.

    Columns: those of `seed_points` except seed; seeds (their number); plus_minus, half the 95 % t interval
    of the metric's mean, which is NaN for one seed; and standard_error, which is NaN for several seeds,
    because their spread contains it.
    """
    seeds = seed_points(table, metric, protocol)
    metric = choose_metric(seeds, metric)
    means = (*MEANS, metric, "standard_error", "accuracy")
    how: dict[str, Any] = {name: (name, "mean") for name in means}
    how |= {name: (name, "first") for name in FACTS}
    how |= {"seeds": ("seed", "nunique"), "plus_minus": (metric, "std")}
    lines = seeds.groupby(["arm", "requested"], sort=False).agg(**how).reset_index()
    lines["plus_minus"] = half_interval(lines["plus_minus"], lines["seeds"])
    lines["standard_error"] = lines["standard_error"].where(lines["seeds"] == 1)
    return lines


def name_arms(rows: pd.DataFrame) -> pd.DataFrame:
    """Adds the columns arm, and requested: the loop count or the schedule.

    Each loop schedule is a separate arm, and so is halting. Only this function names arms, so that
    points, pictures and diagnostics of a table use the same names.
    """
    steady = rows["loop_schedule"] == "constant"
    halted = rows["loop_schedule"].str.contains("halting")
    arm = rows["name"].where(steady, rows["name"] + " " + rows["loop_schedule"])
    arm = arm.where(~halted, rows["name"] + " halting")
    names = list(arm.unique())
    short = dict(zip(names, shorten_names(names), strict=True))
    requested = format_counts(rows["loops"]).where(steady, rows["loop_schedule"])
    return rows.assign(arm=arm.map(short), requested=requested)


def shorten_names(names: list[str]) -> list[str]:
    """The names without the words that all of them start with; "/" and "-" end a word.

    Each shortened name starts with a letter, so that a number such as 1e-3 is never cut.
    """
    shared = commonprefix(sorted(set(names))) if len(set(names)) > 1 else ""  # noqa: RUF071
    for cut in range(len(shared), 0, -1):
        if shared[cut - 1] in "/-" and all(name[cut : cut + 1].isalpha() for name in names):
            return [name[cut:] for name in names]
    return names


def nearly_equal(one: Any, other: Any) -> Any:
    """Whether two costs are within 5 %, which counts as matched."""
    return np.maximum(one, other) <= ALIKE * np.minimum(one, other)


def at_trained_loops(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines of each arm at the loop count it was trained for."""
    return lines[lines["requested"] == format_counts(lines["loops_train"])]


def has_constant_loops(lines: pd.DataFrame) -> pd.Series:
    """Which lines have a constant loop count: no schedule and no halting."""
    return lines["requested"] == format_counts(lines["loops"])


def format_counts(loops: pd.Series) -> pd.Series:
    """Counts as text: 4, not 4.0, even if the column holds floats."""
    return loops.map("{:g}".format)


def caption(
    table: pd.DataFrame,
    metric: str | None = None,
    protocol: str | None = None,
    shown: str = "95 % t intervals",
) -> str:
    """The caption of a figure: data, metric, samples, settings, tuned values, seeds and protocol.

    shown: how the figure shows several seeds.
    """
    rows, choices = choose_settings(table, protocol)
    rows = name_arms(rows)
    metric = choose_metric(rows, metric)
    first = rows.dropna(subset=[metric]).iloc[0]
    what = describe_metric(rows, choices, metric)
    what += f"; {tuned}" if (tuned := describe_tuned(rows)) else ""
    seed_counts = rows.groupby("name")["seed"].nunique()
    few, many = seed_counts.min(), seed_counts.max()
    seeds = f"n = {many}" if few == many else f"n = {few} to {many}"
    bars = shown if many > 1 else "no interval"
    return (
        f"{first['data']}, {first['objective']}; {what}; "
        f"{seeds} seed{'s' * bool(many > 1)}, {bars}; protocol {first['protocol']}"
    )


def caption_of_sampling(table: pd.DataFrame, protocol: str | None, shown: str) -> str:
    """The caption of a figure about sampling: with its settings, even if the metric has none."""
    text = caption(table, None, protocol, shown)
    rows, choices = choose_settings(table, protocol)
    if choose_metric(rows) != HELD_OUT:
        return text
    return f"{text}; sampled with {describe_settings(name_arms(rows), choices)}"


def describe_metric(rows: pd.DataFrame, choices: list[ChosenSetting], metric: str) -> str:
    """The metric with the number of samples, their settings and how these were chosen.

    The held-out loss has no samples, and only the settings of its averages. rows: with their arms.
    """
    samples = rows.loc[rows[metric].notna(), "samples"].iloc[0]
    of = "" if metric == HELD_OUT else f" of {int(samples)} samples{describe_split(rows)}"
    settings = describe_settings(rows, choices, metric)
    return f"{metric}{of}" + (f", {settings}" if settings else "")


def describe_split(rows: pd.DataFrame) -> str:
    """The split that samples are compared with. Old rows do not name it."""
    known = "split" in rows and rows["split"].notna().any()
    return f" against the {splits(rows).iloc[0]} split" if known else ""
