"""Quality against inference compute: one checkpoint at every loop count, and models trained for each.

    python -m eltlab.analysis.anytime [out=anytime.png] [metric=fid] [protocol=ID] [ROWS …]

Every arm that loops is a curve over its loop counts; beyond its trained loop count the curve is dashed and
its marks are hollow. Vanilla loops of one block that were trained for several loop counts form one curve,
"trained for each loop count", with each model at its own count. Unique-layer arms form a curve over their
depths. Prints the table of all points and, if there are models trained for each count and the metric is
unbiased, the elasticity tax. The grey dotted line is what ideal samples of the same number would get.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from eltlab.analysis import command, style
from eltlab.analysis.chosen_settings import arm_settings, choose_settings, reported_rows, why_unmatched
from eltlab.analysis.labels import End, column_height, label_ends
from eltlab.analysis.looks import Looks, arm_looks
from eltlab.analysis.metrics import FRECHET, UNBIASED, choose_metric, why_no_ratio
from eltlab.analysis.paired import half_interval, why_no_logarithm
from eltlab.analysis.points import (
    ALIKE,
    COSTS,
    UNIQUE,
    VANILLA,
    at_trained_loops,
    caption,
    has_constant_loops,
    name_arms,
    points,
    seed_points,
)
from eltlab.analysis.text_values import name_omitted
from eltlab.common.text import format_si

COST = "macs_per_sample"
APART = "trained for each loop count"
LABELS = 30  # at most


class Curve(NamedTuple):
    """A curve of the figure, with its points in order of cost."""

    name: str
    kind: str
    points: pd.DataFrame


def find_curves(lines: pd.DataFrame) -> list[Curve]:
    """The curves through these points, which are from `points.points`.

    Unique-layer arms of one width are one curve unless two have the same depth. Of the vanilla loops in a
    curve "trained for each loop count", only the deepest also has its own curve.
    """
    found: list[Curve] = []
    covered: set[str] = set()
    widths = lines["width"].nunique() > 1
    for block, group in models_per_loop_count(lines):
        vanilla = group[group["kind"] == VANILLA]
        covered |= set(vanilla["arm"]) - {vanilla.loc[vanilla["loops_train"].idxmax(), "arm"]}
        name = f"{block.layers:g} layers {APART}" + f", w{block.width:g}" * widths
        found.append(Curve(name, VANILLA, group))
    unique = lines[lines["kind"] == UNIQUE]
    for width, group in unique.groupby("width", sort=False):
        if group["unique_layers"].is_unique:
            name = UNIQUE + f", w{width:g}" * widths
            found.append(Curve(name, UNIQUE, group.sort_values(COST)))
            covered |= set(group["arm"])
    for arm, group in lines[~lines["arm"].isin(covered)].groupby("arm", sort=False):
        found.append(Curve(str(arm), group["kind"].iloc[0], group.sort_values(COST)))
    return found


class Block(NamedTuple):
    """What is looped: its unique layers, their width, and the number of layers around the loop."""

    layers: float
    width: float
    around: float


def find_blocks(lines: pd.DataFrame) -> pd.Series:
    """The block of each line."""
    around = lines["depth"] - lines["unique_layers"] * lines["loops"]
    columns = zip(lines["unique_layers"], lines["width"], around, strict=True)
    return pd.Series([Block(*column) for column in columns], index=lines.index, dtype=object)


def models_per_loop_count(lines: pd.DataFrame) -> Iterator[tuple[Block, pd.DataFrame]]:
    """Each block that was trained for several loop counts without inner supervision, and these models, each
    at its own count. The model trained for one loop is the unique-layer model. Skips a block with two
    models for one count, because it is not known which to compare."""
    own = at_trained_loops(lines)
    own = own[own["kind"].isin([VANILLA, UNIQUE])]
    for block, group in own.groupby(find_blocks(own), sort=True):
        vanilla = group[group["kind"] == VANILLA]
        if len(group) > 1 and len(vanilla) and group["loops_train"].is_unique:
            yield block, group.sort_values(COST)


# --- the elasticity tax ---------------------------------------------------------------------------

NO_TAX = (
    "it requires an elastic arm and models of its block (same unique layers and width) trained "
    "for several loop counts, one for each"
)


def elasticity_tax(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> pd.DataFrame:
    """How much worse an elastic model is than models of its block trained for each loop count.

    Take log quality over log MACs, averaged over seeds, for the elastic model and for the models trained
    for each count. Each curve is the best quality within a budget, since a model may use less compute than
    it could. The tax is exp(a) − 1, where a is the mean height of the elastic curve above the other one
    over the loop counts that both have, up to the trained one. A tax of 0.25 says that at equal inference
    compute the elastic model is on average 1.25 times as far from the data.

    The best of several noisy models looks better than it is. A jackknife over seeds reduces this bias and
    gives the interval.

    Returns one line per elastic arm: arm, tax, low and high (95 % t interval over shared seeds; NaN for
    one seed), seeds, loops_from, loops_to, loops_train, and no_tax: why the tax is NaN (an arm is not above 0
    by its error, or measured at another setting), or None. Empty if no block was trained for several loop
    counts, or if the metric is biased (`why_no_ratio`).
    """
    seeds = seed_points(table, metric, protocol)
    metric = choose_metric(seeds, metric)
    rows, choices = choose_settings(table, protocol)
    settings = arm_settings(name_arms(rows), choices, metric)
    found = []
    blocks = models_per_loop_count(points(table, metric, protocol)) if metric in UNBIASED else ()
    for block, group in blocks:
        apart = at_trained_loops(seeds[seeds["arm"].isin(group["arm"])])
        for arm, elastic in elastic_arms(seeds, block):
            shared = shared_seeds(elastic, apart)
            covered = shared_loops(elastic, apart)
            if shared and len(covered):
                loops = (covered.min(), covered.max(), elastic["loops_train"].iloc[0])
                both = pd.concat([elastic, apart])
                reasons = list(why_no_logarithm(both[both["seed"].isin(shared)], metric))
                reason = why_unmatched(settings, both["arm"].unique()) or "; ".join(reasons) or None
                mean, half = jackknife(elastic, apart, shared, metric) if reason is None else (np.nan, np.nan)
                low, high = np.expm1(mean - half), np.expm1(mean + half)
                found.append((arm, np.expm1(mean), low, high, len(shared), *loops, reason))
    columns = ["arm", "tax", "low", "high", "seeds", "loops_from", "loops_to", "loops_train", "no_tax"]
    return pd.DataFrame(found, columns=columns)


def elastic_arms(seeds: pd.DataFrame, block: Block) -> Iterator[tuple[str, pd.DataFrame]]:
    """The elastic arms of this block, at loop counts up to the trained one."""
    elastic = seeds[~seeds["kind"].isin([VANILLA, UNIQUE]) & has_constant_loops(seeds)]
    elastic = elastic[elastic["loops"] <= elastic["loops_train"]]
    for arm, group in elastic[find_blocks(elastic) == block].groupby("arm", sort=False):
        yield str(arm), group


def shared_seeds(one: pd.DataFrame, other: pd.DataFrame) -> list[int]:
    """The seeds for which every point of both is measured."""
    complete = [
        set.intersection(*(set(group["seed"]) for _, group in each.groupby(["arm", "loops"])))
        for each in (one, other)
    ]
    return sorted(complete[0] & complete[1])


def shared_loops(elastic: pd.DataFrame, apart: pd.DataFrame) -> pd.Series:
    """The loop counts at which the elastic model's cost is within the range of the models trained apart;
    empty if there are fewer than two."""
    low, high = apart[COST].min() / ALIKE, apart[COST].max() * ALIKE
    loops = elastic.loc[elastic[COST].between(low, high), "loops"]
    return loops if loops.nunique() > 1 else loops.iloc[:0]


def jackknife(
    elastic: pd.DataFrame, apart: pd.DataFrame, seeds: list[int], metric: str
) -> tuple[float, float]:
    """The mean height of one curve above the other, and half its 95 % t interval (NaN for one seed)."""

    def height(chosen: list[int]) -> float:
        one, other = (each[each["seed"].isin(chosen)] for each in (elastic, apart))
        return mean_height(one, other, metric)

    whole, count = height(seeds), len(seeds)
    if count == 1:
        return whole, float("nan")
    without = np.array([height([other for other in seeds if other != seed]) for seed in seeds])
    pseudo = count * whole - (count - 1) * without  # Tukey's pseudo-values
    return float(pseudo.mean()), float(half_interval(pseudo.std(ddof=1), count))


def mean_height(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> float:
    """The mean of log(one / other) over log compute, in the range of both curves."""
    curves = [log_envelope(each, metric) for each in (one, other)]
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([[low, high], *(x for x, _ in curves)]))
    x = x[(x >= low) & (x <= high)]
    first, second = (np.interp(x, *each) for each in curves)
    return float(np.trapezoid(first - second, x) / (high - low))


def log_envelope(group: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Log compute, and the log of the best quality within it, from means over seeds."""
    means = group.groupby(COST)[metric].mean()
    costs = means.index.to_numpy(float)
    return np.log(costs), np.minimum.accumulate(np.log(means.to_numpy(float)))


# --- the figure -----------------------------------------------------------------------------------


def draw(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> Figure:
    """Quality over MACs per sample on log axes; bars are 95 % t intervals over seeds.

    With a value at or below 0, quality has a linear axis.
    """
    lines = points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    looks, curves = arm_looks(table, protocol), find_curves(lines)
    curves = sorted(curves, key=lambda each: each.points[metric].min())
    named, unnamed = curves[:LABELS], curves[LABELS:]
    drawn = pd.concat([each.points for each in curves])
    drawn = drawn[~drawn.index.duplicated()]  # a point may be on two curves
    text = figure_caption(table, metric, protocol) + describe_partly_drawn(lines, drawn)
    text += name_omitted(f"Without {metric}", set(looks.arms) - set(lines["arm"]))
    text += name_omitted("Without a name", [each.name for each in unnamed])
    with style.canvas(text, size=(6.8, max(4.4, column_height(len(named) + 1)))) as (figure, [axes]):
        draw_curves(axes, curves, drawn, metric, looks)
        ends = [End(each.points[metric].iloc[-1], each.name, line_of(each, looks)) for each in named]
        ends += draw_floor(axes, reported_rows(table, protocol), metric)
        style.settle(figure)
        label_ends(axes, ends)
    return figure


def draw_curves(axes: Axes, curves: list[Curve], lines: pd.DataFrame, metric: str, looks: Looks) -> None:
    """Draws the curves, and these points with their intervals."""
    style.set_log_axes(axes, COSTS[COST], f"{metric} (lower is better)")
    style.make_room_below_0(axes, lines[metric])
    draw_intervals(axes, lines, metric, looks)
    for each in curves:
        draw_curve(axes, each, metric, looks)
    draw_marks(axes, lines, metric, looks)
    if axes.get_yscale() == "log":
        # An interval that reaches almost to 0 would fill most of a log axis.
        axes.set_ylim(bottom=max(axes.get_ylim()[0], lines[metric].min() / 3))


def line_of(each: Curve, looks: Looks) -> dict[str, Any]:
    """The keywords of the line of a curve: dotted through models trained apart."""
    arms = each.points["arm"].unique()
    if len(arms) == 1:
        return looks.arms[arms[0]].line(linestyle="-" if has_line(each) else "None")
    return {"color": looks.kinds[each.kind], "linestyle": ":" if APART in each.name else "-"}


def has_line(each: Curve) -> bool:
    """Schedules are points without a line."""
    return len(each.points) > 1 and bool(has_constant_loops(each.points).all())


def draw_curve(axes: Axes, each: Curve, metric: str, looks: Looks) -> None:
    """Draws the line of a curve, dashed beyond the trained loops."""
    if not has_line(each):
        return
    found, line = each.points, line_of(each, looks) | {"marker": "None"}
    beyond = found["loops"] > found["loops_train"]
    inside = found[~beyond]
    axes.plot(inside[COST], inside[metric], **line, alpha=0.9)
    if beyond.any():
        outside = pd.concat([inside.iloc[-1:], found[beyond]])
        axes.plot(outside[COST], outside[metric], **line | {"linestyle": "--"}, alpha=0.7)


def draw_marks(axes: Axes, found: pd.DataFrame, metric: str, looks: Looks) -> None:
    """Draws the points, hollow beyond the trained loops, one call per look because there may be many."""
    beyond = found["loops"] > found["loops_train"]
    for (look, hollow), group in found.groupby([found["arm"].map(looks.arms), beyond], sort=False):
        face = {"markerfacecolor": "white"} if hollow else {}
        line = look.line(linestyle="None", rasterized=len(group) > style.MANY, **face)
        axes.plot(group[COST], group[metric], **line)


def draw_intervals(axes: Axes, lines: pd.DataFrame, metric: str, looks: Looks) -> None:
    """Draws the intervals of all points as one collection, because there may be many."""
    known = lines.dropna(subset=["plus_minus"])
    low = known[metric] - known["plus_minus"]
    if axes.get_yscale() == "log":
        low = low.clip(lower=1e-3 * known[metric])
    x, high = known[COST], known[metric] + known["plus_minus"]
    colours = [looks.arms[arm].colour for arm in known["arm"]]
    segments = np.stack([np.column_stack([x, low]), np.column_stack([x, high])], axis=1)
    bars = LineCollection(list(segments), colors=colours, linewidths=1, alpha=0.6)
    bars.set_rasterized(len(known) > style.MANY)
    axes.add_collection(bars, autolim=False)  # it would round, and equal costs would differ
    axes.update_datalim(segments.reshape(-1, 2))


FLOOR = "ideal samples of the same number"


def draw_floor(axes: Axes, rows: pd.DataFrame, metric: str) -> list[End]:
    """Draws the distance of ideal samples, as many as the rows have; returns its name, if it has one.

    The arms alone set the axis, so that they can be told apart. A floor outside of it has its value in its
    name. Only a distance of a finite number of samples has a floor: of an unbiased distance it is 0.
    """
    if metric not in FRECHET or "fd_ideal" not in rows:
        return []
    height = float(rows.loc[rows[metric].notna(), "fd_ideal"].mean())
    if np.isnan(height):
        return []
    line: dict[str, Any] = {"color": style.GREY, "linestyle": ":", "linewidth": 1}
    low, high = axes.get_ylim()
    if low <= height <= high:
        axes.set_ylim(low, high)
        axes.axhline(height, **line)
        return [End(height, FLOOR, line)]
    arrow, edge = ("↓", low) if height < low else ("↑", high)
    return [End(edge, f"{arrow} {FLOOR}: {format_si(height)}", {"linestyle": "None"})]


def describe_partly_drawn(lines: pd.DataFrame, drawn: pd.DataFrame) -> str:
    """Names the arms that have no curve of their own (`find_curves`)."""
    arms = lines.loc[~lines.index.isin(drawn.index), "arm"].unique()
    return name_omitted("Drawn only at the loop count it was trained for", arms)


def figure_caption(table: pd.DataFrame, metric: str, protocol: str | None) -> str:
    tax = "; ".join(describe_tax(row) for row in elasticity_tax(table, metric, protocol).itertuples())
    return caption(table, metric, protocol) + (f". Elasticity tax: {tax}" if tax else "")


def describe_tax(row: Any) -> str:
    """One line of `elasticity_tax` in words."""
    if row.no_tax is not None:
        return f"{row.arm} none ({row.no_tax})"
    seeds = f"{row.seeds} seeds" if row.seeds > 1 else "one seed: no interval"
    span = f" ({row.low:+.0%} to {row.high:+.0%})" if np.isfinite(row.low) else ""
    of = f"{row.loops_from:g} to {row.loops_to:g} of {row.loops_train:g} loops"
    return f"{row.arm} {row.tax:+.0%}{span} over {of}, {seeds}"


# --- the table ------------------------------------------------------------------------------------


def format_points(lines: pd.DataFrame, metric: str) -> str:
    """The points as a printed table."""
    layers_by_loops = [
        f"{layers} x {loops}"
        for layers, loops in zip(lines["unique_layers"], lines["loops_train"], strict=True)
    ]
    shown = lines.assign(**{"layers x loops": layers_by_loops}).rename(columns=SHORT_NAMES)
    order = ["arm", "loops", "layers x loops", "loops_train", "params", COST]
    order += ["images", "train_flops", "seeds", metric, "plus_minus", "standard_error", "accuracy"]
    shown = shown[order]
    shown = shown.dropna(axis="columns", how="all")
    digits = "{:,.2f}" if shown[metric].min() >= 1 else "{:,.4f}"
    formats = FORMATS | dict.fromkeys([metric, "plus_minus", "standard_error"], digits.format)
    return shown.to_string(index=False, formatters=formats, na_rep="")


SHORT_NAMES = {
    "params_total": "params",
    "images_seen": "images",
    "train_flops_total": "train_flops",
}
FORMATS = {
    "loops": "{:.3g}".format,
    "params": "{:,.0f}".format,
    "macs_per_sample": "{:,.0f}".format,
    "images": "{:,.0f}".format,
    "train_flops": "{:.3g}".format,
    "accuracy": "{:.3f}".format,
}


def main(table: pd.DataFrame, keys: Any) -> None:
    lines = points(table, keys.metric, keys.protocol)
    metric = choose_metric(lines, keys.metric)
    print(format_points(lines, metric))
    found = elasticity_tax(table, metric, keys.protocol)
    for line in found.itertuples():
        print(f"elasticity tax: {describe_tax(line)}")
    if found.empty:
        reason = why_no_ratio(reported_rows(table, keys.protocol), metric)
        print(f"elasticity tax: none: {reason or NO_TAX}", file=sys.stderr)
    print(f"figure: {style.save(draw(table, metric, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="anytime.png", metric=None, protocol=None)
