"""Pareto fronts: quality against parameters, MACs per sample and training FLOPs.

    python -m eltlab.analysis.pareto [out=pareto.png] [metric=fid] [protocol=ID] [ROWS …]

There is one panel per cost. The front of each kind of arm (unique layers, vanilla loop, elastic) is a
line; dominated points are faded. With several seeds, the band is between what all seeds attain
and what at least one attains. Prints the fronts and their hypervolumes.
"""

from typing import Any

import moocore
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from eltlab.analysis import command, style
from eltlab.analysis.labels import Place, label_points, shorten
from eltlab.analysis.looks import Looks, arm_looks
from eltlab.analysis.metrics import choose_metric, format_quality
from eltlab.analysis.points import (
    COSTS,
    at_trained_loops,
    caption,
    format_counts,
    has_constant_loops,
    nearly_equal,
    points,
    seed_points,
)
from eltlab.analysis.text_values import name_omitted
from eltlab.common.errors import UserError
from eltlab.common.text import format_si, format_table

# The corner up to which a front's hypervolume is measured. It never changes, so that hypervolumes computed
# at different times are comparable.
REFERENCE = {
    "params_total": 1e11,
    "macs_per_sample": 1e17,
    "train_flops_total": 1e25,
    "heldout_loss": 1e1,
    "fid": 1e3,
    "fid_inf": 1e3,
    "fvd": 1e4,
    "fvd_inf": 1e4,
    "fd_classifier": 1e4,
    "fd_classifier_inf": 1e4,
    "kd_classifier": 1e4,
    "kid": 1e1,
}
LABELS = 30  # loop counts, at most, per panel
ARMS = 24  # names of arms in the legend, at most


def non_dominated(cost: Any, distance: Any) -> np.ndarray:
    """Which points no other point beats in both values; equal points are all kept. bool [n]."""
    return moocore.is_nondominated(np.column_stack([cost, distance]).astype(float), keep_weakly=True)


def hypervolume(cost: Any, distance: Any, axes: tuple[str, str]) -> float:
    """The area that the points dominate up to REFERENCE, in decades of cost × decades of distance.

    axes: the names of the columns of cost and distance. Points beyond the reference add nothing. Raises
    UserError if a value has no logarithm.
    """
    values = np.column_stack([cost, distance]).astype(float)
    if not (values > 0).all():
        raise UserError(f"{' and '.join(axes)}: a hypervolume requires values above 0")
    corner = [np.log10(REFERENCE[name]) for name in axes]
    return float(moocore.hypervolume(np.log10(values), ref=corner))


def attainment(seeds: pd.DataFrame, cost: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The empirical attainment surfaces over seeds: what at least one seed attains, and what all attain.

    Returns two arrays [n, 2] of cost and distance, ordered by cost.
    """
    # eaf gives wrong results unless the points of each set are contiguous.
    seeds = seeds.sort_values("seed", kind="stable")
    data = seeds[[cost, metric]].to_numpy(float)
    sets = seeds["seed"].to_numpy(float)
    share = 100 / seeds["seed"].nunique()
    found = moocore.eaf(data, sets, percentiles=[share, 100])
    some, every = (found[np.isclose(found[:, 2], level)][:, :2] for level in (share, 100))
    return some[np.argsort(some[:, 0])], every[np.argsort(every[:, 0])]


def fronts(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """The points on the front of their kind: one line per cost, kind and point.

    Columns: cost, kind, label, value (of the cost), the metric, plus_minus, standard_error, seeds,
    hypervolume (of the whole front; NaN if a value of it is at or below 0).
    """
    lines = points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    lines["label"] = point_labels(lines)
    found = []
    for cost in varying_costs(lines):
        for kind, group in lines.groupby("kind", sort=False):
            best = group[non_dominated(group[cost], group[metric])].sort_values(cost)
            positive = (best[metric] > 0).all()
            area = hypervolume(best[cost], best[metric], (cost, metric)) if positive else np.nan
            kept = best[["label", metric, "plus_minus", "standard_error", "seeds"]]
            found.append(kept.assign(cost=cost, kind=kind, value=best[cost].astype(float), hypervolume=area))
    order = ["cost", "kind", "label", "value", metric, "plus_minus", "standard_error", "seeds", "hypervolume"]
    return pd.concat(found, ignore_index=True)[order]


def point_labels(lines: pd.DataFrame) -> pd.Series:
    """A short name for each point: 2x4, or 2x4@1 at other loop counts, with the width if widths differ.

    If several arms of a kind would share a short name, their own names are used.
    """
    name = format_counts(lines["unique_layers"]) + "x" + format_counts(lines["loops_train"])
    if lines["width"].nunique() > 1:
        name = "w" + format_counts(lines["width"]) + " " + name
    arms = lines.groupby([name.rename("name"), "kind"])["arm"].transform("nunique")
    name = name.where(arms == 1, lines["arm"])
    trained = lines["requested"] == format_counts(lines["loops_train"])
    return name.where(trained, name + "@" + lines["requested"])


def varying_costs(lines: pd.DataFrame) -> list[str]:
    """The costs that differ between points by more than 5 %; the rest are matched."""
    found = [cost for cost in COSTS if not nearly_equal(lines[cost].min(), lines[cost].max())]
    return found or ["macs_per_sample"]


# --- the figure -----------------------------------------------------------------------------------


def draw(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> Figure:
    """One panel per cost that differs, with log axes (a linear one of quality with a value ≤ 0)."""
    lines = points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    seeds = seed_points(table, metric, protocol)
    costs, looks = varying_costs(lines), arm_looks(table, protocol)
    size = (style.panel_width(len(costs), 5.2), 3.6)
    keys, unnamed = figure_keys(lines, costs, metric, looks)
    columns = style.legend_columns([name for name, _ in keys], size[0] * len(costs))
    size = (size[0], size[1] + 0.17 * len(keys) / columns)
    text = figure_caption(table, lines, metric, protocol)
    text += name_omitted("Without a name", unnamed)
    text += name_omitted(f"Without {metric}", set(looks.arms) - set(lines["arm"]))
    with style.canvas(text, len(costs), size=size) as (figure, panels):
        figure.legend(
            handles=[Line2D([], [], **line, label=shorten(name)) for name, line in keys],
            loc="outside upper left",
            ncols=columns,
        )
        for axes, cost in zip(panels, costs, strict=True):
            title = f"{metric} (lower is better)" if axes is panels[0] else ""
            style.set_log_axes(axes, COSTS[cost], title)
            style.make_room_below_0(axes, seeds[metric])
            for kind, group in lines.groupby("kind", sort=False):
                of_kind = keep_shared_seeds(seeds[seeds["kind"] == kind])
                draw_kind(axes, group, of_kind, (cost, metric), looks)
            axes.set_xmargin(0.15)
        style.settle(figure)
        for axes, cost in zip(panels, costs, strict=True):
            label_points(axes, loop_counts(lines, cost, metric))
    return figure


def figure_keys(
    lines: pd.DataFrame, costs: list[str], metric: str, looks: Looks
) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The names in the legend with the keywords of their lines: fronts by kind, then arms, at most ARMS of
    them and those on a front first. Also the arms without a name."""
    on_front = {arm for cost in costs for arm in front_points(lines, cost, metric)["arm"]}
    arms = sorted(lines["arm"].unique(), key=lambda arm: arm not in on_front)
    kinds = lines.drop_duplicates("arm")["kind"]
    if kinds.is_unique:
        one = dict(zip(kinds, lines["arm"].unique(), strict=True))
        return [(kind, looks.arms[arm].line()) for kind, arm in one.items()], []
    found = [(f"front of {kind}", {"color": looks.kinds[kind]}) for kind in kinds.unique()]
    found += [(arm, looks.arms[arm].line(linestyle="None")) for arm in looks.arms if arm in arms[:ARMS]]
    return found, arms[ARMS:]


def front_points(lines: pd.DataFrame, cost: str, metric: str) -> pd.DataFrame:
    """The points on the front of their kind."""
    groups = (group for _, group in lines.groupby("kind", sort=False))
    return pd.concat([group[non_dominated(group[cost], group[metric])] for group in groups])


def loop_counts(lines: pd.DataFrame, cost: str, metric: str) -> list[Place]:
    """The names of the lowest LABELS points of fronts that were not measured at the trained loop count: @2
    for two loops. A schedule is in the name of its arm."""
    one = ~has_constant_loops(lines) & (lines.groupby("arm")["loops"].transform("size") == 1)
    others = ~lines.index.isin(at_trained_loops(lines).index) & ~one
    front = front_points(lines, cost, metric)
    front = front[others[front.index]].sort_values(metric)[:LABELS]
    columns = zip(front[cost], front[metric], front["requested"], strict=True)
    return [Place(x, y, f"@{loops}") for x, y, loops in columns]


def keep_shared_seeds(seeds: pd.DataFrame) -> pd.DataFrame:
    """The lines of the seeds that every arm and loop count has, so that all seeds have the same points."""
    shared = set.intersection(*(set(group["seed"]) for _, group in seeds.groupby(["arm", "requested"])))
    return seeds[seeds["seed"].isin(shared)]


def draw_kind(
    axes: Axes, group: pd.DataFrame, seeds: pd.DataFrame, columns: tuple[str, str], looks: Looks
) -> None:
    """Draws the front of a kind, its points and those that it dominates. columns: of cost and distance."""
    x, y = columns
    colour = looks.kinds[group["kind"].iloc[0]]
    best = pd.Series(non_dominated(group[x], group[y]), group.index)
    front = group[best].sort_values(x)
    # The corners of the steps: a front holds until the next point.
    axes.plot(np.repeat(front[x], 2)[1:], np.repeat(front[y], 2)[:-1], color=colour, linewidth=1.2)
    if seeds["seed"].nunique() > 1:
        draw_band(axes, *attainment(seeds, x, y), colour)
    for (kept, look), marks in group.groupby([best, group["arm"].map(looks.arms)], sort=True):
        faded = {} if kept else {"alpha": 0.3, "markeredgewidth": 0.6, "markersize": 4.5}
        line = look.line(linestyle="None", rasterized=len(marks) > style.MANY, **faded)
        axes.plot(marks[x], marks[y], **line)


def draw_band(axes: Axes, some: np.ndarray, every: np.ndarray, colour: str) -> None:
    """Fills the area between two attainment surfaces, which are step functions of the cost."""
    x = np.unique(np.concatenate([some[:, 0], every[:, 0]]))
    x = x[x >= every[0, 0]]  # before that not every seed has a point
    low, high = (surface[np.searchsorted(surface[:, 0], x, "right") - 1, 1] for surface in (some, every))
    if len(x) > 1:
        axes.fill_between(x, low, high, step="post", color=colour, alpha=0.12, linewidth=0)
    else:
        axes.plot(np.repeat(x, 2), [low[0], high[0]], color=colour, alpha=0.25, linewidth=4)


def figure_caption(table: pd.DataFrame, lines: pd.DataFrame, metric: str, protocol: str | None) -> str:
    matched = [COSTS[cost] for cost in COSTS if cost not in varying_costs(lines)]
    text = caption(table, metric, protocol, "bands of the seeds")
    text += f"; matched: {' and '.join(matched)}" if matched else ""
    if len(at_trained_loops(lines)) == len(lines):
        return text
    return text + ". @2: at two loops instead of the trained count, written if there is room"


def main(table: pd.DataFrame, keys: Any) -> None:
    found = fronts(table, keys.metric, keys.protocol)
    metric = found.columns[4]
    for (cost, kind), front in found.groupby(["cost", "kind"], sort=False):
        area = front["hypervolume"].iloc[0]
        size = f"{area:.3f} decades²" if np.isfinite(area) else "none: a value is at or below 0"
        print(f"{kind}, {COSTS[str(cost)]}: hypervolume {size}")
        rows = [["", COSTS[str(cost)], metric]]
        rows += [
            [r.label, format_si(r.value), format_quality(getattr(r, metric), r.plus_minus, r.standard_error)]
            for r in front.itertuples()
        ]
        print(*("  " + line for line in format_table(rows)), sep="\n")
    print(f"figure: {style.save(draw(table, metric, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="pareto.png", metric=None, protocol=None)
