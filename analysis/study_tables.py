"""The tables of a page: each point with all its metrics, and each arm with one metric per loop count."""

from typing import Any

import pandas as pd

from eltlab.analysis.comparison import mean_over_seeds
from eltlab.analysis.metrics import FRECHET, HELD_OUT, SAMPLED, format_quality, measured
from eltlab.analysis.points import has_constant_loops
from eltlab.common.errors import UserError
from eltlab.common.text import format_si


def choose_columns(rows: pd.DataFrame) -> list[str]:
    """The unbiased metrics that the rows have, with memorisation and the training loss.

    Without an unbiased metric, the biased distances with what ideal samples would get.
    """
    unbiased = measured(rows, (HELD_OUT, *SAMPLED))
    if unbiased:
        return [*unbiased, *measured(rows, ("memorised", "train_loss"))]
    return [*measured(rows, FRECHET), *measured(rows, ("fd_ideal", "accuracy"))]


def point_rows(rows: pd.DataFrame, columns: list[str] | None = None) -> list[list[str]]:
    """One line per arm and loop count (or schedule), headings first; empty cells if not measured.

    rows: with their arms (`points.name_arms`).
    """
    columns = columns or choose_columns(rows)
    for column in columns:
        if column not in rows or rows[column].isna().all():
            raise UserError(f"the rows have no column {column}")
    lines = [["arm", "layers x loops", "loops", "MACs per sample", *columns, "seeds"]]
    for _, arm in rows.groupby("arm", sort=False):
        for _, point in sorted(arm.groupby("requested", sort=False), key=mean_loops):
            first = point.iloc[0]
            shape, macs = describe_shape(first), format_si(point["macs_per_sample"].mean())
            cells = [format_cell(point, column) for column in columns]
            loops = f"{point['loops'].mean():.3g}"
            lines.append([first["arm"], shape, loops, macs, *cells, str(point["seed"].nunique())])
    return lines


def grid_rows(rows: pd.DataFrame, metric: str) -> list[list[str]]:
    """One line per arm with its costs and the metric at each constant loop count, headings first."""
    rows = rows.loc[has_constant_loops(rows), ~rows.columns.str.startswith("cfg.")]
    counts = sorted(rows.loc[rows[metric].notna(), "loops"].unique())
    titles = ["arm", "layers x loops", "parameters", "images", "training FLOPs", "seeds"]
    lines = [[*titles, *(f"at {count:g}" for count in counts)]]
    for arm, group in rows.groupby("arm", sort=False):
        first = group.iloc[0]
        facts = [str(arm), describe_shape(first), format_si(first["params_total"])]
        facts += [f"{first['images_seen']:,.0f}", format_si(first["train_flops_total"])]
        cells = [format_cell(group[group["loops"] == count], metric) for count in counts]
        lines.append([*facts, str(group["seed"].nunique()), *cells])
    return lines


def exit_losses(rows: pd.DataFrame) -> pd.DataFrame:
    """The held-out loss by arm and seed: mean (over the exits up to the trained one), full (the trained one)
    and half (at half the loops; NaN if they are odd)."""
    own = rows[has_constant_loops(rows) & (rows["loops"] <= rows["loops_train"])]
    share = own["loops"] / own["loops_train"]
    losses = pd.DataFrame({
        "mean": own[HELD_OUT],
        "full": own[HELD_OUT].where(share == 1),
        "half": own[HELD_OUT].where(share == 1 / 2),
    })  # fmt: skip
    return losses.groupby([own["arm"], own["seed"]], sort=False).mean()


def exit_rows(rows: pd.DataFrame) -> list[list[str]]:
    """One line per arm: what it is worth as one model for all loop counts, and at full loops; headings first.

    half ÷ full is the mean over seeds of the ratio of the losses at half and at full loops.
    """
    lines = [["arm", "layers x loops", "mean over exits", "full exit", "half ÷ full", "seeds"]]
    for arm, seeds in exit_losses(rows).groupby("arm", sort=False):
        first = rows[rows["arm"] == arm].iloc[0]
        cells = [str(mean_over_seeds(seeds[column])) for column in ("mean", "full")]
        ratio = f"{(seeds['half'] / seeds['full']).mean():.3f}"
        lines.append([str(arm), describe_shape(first), *cells, ratio, str(len(seeds))])
    return lines


def mean_loops(point: Any) -> float:
    return float(point[1]["loops"].mean())


def describe_shape(row: pd.Series) -> str:
    return f"{row['unique_layers']:g} x {row['loops_train']:g}"


def format_cell(point: pd.DataFrame, column: str) -> str:
    """The mean over seeds ± half its interval; for one seed ± the standard error, if there is one."""
    seeds = point.groupby("seed")[column].mean().dropna()
    if seeds.empty:
        return ""
    if len(seeds) > 1:
        return str(mean_over_seeds(seeds))
    error = point[f"{column}_se"].mean() if f"{column}_se" in point else float("nan")
    return format_quality(seeds.iloc[0], float("nan"), error).removesuffix(" (no interval)")
