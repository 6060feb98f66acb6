"""Quality against inference compute: one checkpoint at every loop count, beside what was trained for each.

    python -m eltlab.analysis.anytime [out=anytime.png] [metric=fid] [protocol=ID] [ROWS …]

Every arm that loops is a curve over its loop counts; beyond those it was trained for the curve is dashed
and its marks are hollow. Of vanilla loops of one block that were trained for several loop counts, each
stands at its own count: "trained for each". Unique layers are joined over their depths. Prints the table
of all points and, where there are models trained for each count, the elasticity tax.
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
from eltlab.analysis.points import (
    ALIKE,
    COSTS,
    UNIQUE,
    VANILLA,
    caption,
    constant,
    full,
    half_interval,
    per_seed,
    points,
    quality_of,
    with_logarithms,
)
from eltlab.runs import result_table

COST = "macs_per_sample"
APART = "trained for each loop count"
LABELS = 12  # at most that a panel takes


class Series(NamedTuple):
    """A curve of the figure: points in the order of their cost."""

    name: str
    kind: str
    points: pd.DataFrame


def series(lines: pd.DataFrame) -> list[Series]:
    """The curves of these points (of `points.points`).

    Vanilla loops that are part of "trained for each loop count" have no curve of their own, but for the
    deepest.
    """
    found: list[Series] = []
    covered: set[str] = set()
    widths = lines["width"].nunique() > 1
    for block, group in trained_apart(lines):
        vanilla = group[group["kind"] == VANILLA]
        covered |= set(vanilla["arm"]) - {vanilla.loc[vanilla["loops_train"].idxmax(), "arm"]}
        name = f"{block.layers:g} layers {APART}" + f", w{block.width:g}" * widths
        found.append(Series(name, VANILLA, group))
    unique = lines[lines["kind"] == UNIQUE]
    for width, group in unique.groupby("width", sort=False):
        name = UNIQUE + f", w{width:g}" * widths
        found.append(Series(name, UNIQUE, group.sort_values(COST)))
    looped = lines[(lines["kind"] != UNIQUE) & ~lines["arm"].isin(covered)]
    for arm, group in looped.groupby("arm", sort=False):
        found.append(Series(str(arm), group["kind"].iloc[0], group.sort_values(COST)))
    return found


class Block(NamedTuple):
    """What loops: its unique layers, their width, and the layers before and after them."""

    layers: float
    width: float
    around: float


def blocks(lines: pd.DataFrame) -> pd.Series:
    """The block of each line."""
    around = lines["depth"] - lines["unique_layers"] * lines["loops"]
    columns = zip(lines["unique_layers"], lines["width"], around, strict=True)
    return pd.Series([Block(*column) for column in columns], index=lines.index, dtype=object)


def trained_apart(lines: pd.DataFrame) -> Iterator[tuple[Block, pd.DataFrame]]:
    """Of each block that was trained for several loop counts without inner supervision: these models,
    each at its own count. Trained for one loop it is the unique-layer model. A block with two models of
    one count is left out: which of them it is, nobody can tell."""
    own = full(lines)
    own = own[own["kind"].isin([VANILLA, UNIQUE])]
    for block, group in own.groupby(blocks(own), sort=True):
        vanilla = group[group["kind"] == VANILLA]
        if len(group) > 1 and len(vanilla) and group["loops_train"].is_unique:
            yield block, group.sort_values(COST)


# --- the elasticity tax ---------------------------------------------------------------------------

NO_TAX = (
    "none: it needs an elastic arm and models of its block (unique layers and width) trained for "
    "several loop counts, one for each"
)


def elasticity_tax(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> pd.DataFrame:
    """How much worse an elastic model is than models of its block trained for each loop count.

    In logarithms of quality and of MACs: the area between the curve of the elastic model and the envelope
    of the others, over its width. tax is exp of that, less one: 0.25 says that at equal inference compute
    the elastic model is on average 1.25 times as far from the data. Both curves are means over seeds, and
    the best that their budget buys: a model may spend less than it could. Over the loop counts that both
    have, at most those the elastic model was trained for.

    The best of several noisy models looks better than any is. The jackknife over seeds takes that bias
    out, as far as seeds tell it, and gives the interval.

    Returns one line an elastic arm: arm, tax, low and high (95 % t interval over shared seeds; NaN for
    one), seeds, loops_from, loops_to and loops_train. Empty where no block was trained for several
    loop counts, one model for each.
    """
    seeds = per_seed(table, metric, protocol)
    metric = quality_of(seeds, metric)
    with_logarithms(seeds, metric)
    found = []
    for block, group in trained_apart(points(table, metric, protocol)):
        apart = full(seeds[seeds["arm"].isin(group["arm"])])
        for arm, elastic in elastic_of(seeds, block):
            shared = shared_seeds(elastic, apart)
            covered = reach(elastic, apart)
            if shared and len(covered):
                mean, half = jackknife(elastic, apart, shared, metric)
                low, high = np.expm1(mean - half), np.expm1(mean + half)
                loops = (covered.min(), covered.max(), elastic["loops_train"].iloc[0])
                found.append((arm, np.expm1(mean), low, high, len(shared), *loops))
    columns = ["arm", "tax", "low", "high", "seeds", "loops_from", "loops_to", "loops_train"]
    return pd.DataFrame(found, columns=columns)


def elastic_of(seeds: pd.DataFrame, block: Block) -> Iterator[tuple[str, pd.DataFrame]]:
    """The elastic arms of this block, at the loop counts that they were trained for."""
    elastic = seeds[~seeds["kind"].isin([VANILLA, UNIQUE]) & constant(seeds)]
    elastic = elastic[elastic["loops"] <= elastic["loops_train"]]
    for arm, group in elastic[blocks(elastic) == block].groupby("arm", sort=False):
        yield str(arm), group


def shared_seeds(one: pd.DataFrame, other: pd.DataFrame) -> list[int]:
    """The seeds of which every point of both is there."""
    complete = [
        set.intersection(*(set(group["seed"]) for _, group in each.groupby(["arm", "loops"])))
        for each in (one, other)
    ]
    return sorted(complete[0] & complete[1])


def reach(elastic: pd.DataFrame, apart: pd.DataFrame) -> pd.Series:
    """The loop counts of the elastic model that cost what models trained apart cost, least to most; empty
    where those are not two at least."""
    low, high = apart[COST].min() / ALIKE, apart[COST].max() * ALIKE
    loops = elastic.loc[elastic[COST].between(low, high), "loops"]
    return loops if loops.nunique() > 1 else loops.iloc[:0]


def jackknife(
    elastic: pd.DataFrame, apart: pd.DataFrame, seeds: list[int], metric: str
) -> tuple[float, float]:
    """The area between the curves of means over seeds, and half of its 95 % t interval (NaN for one)."""

    def of(chosen: list[int]) -> float:
        one, other = (each[each["seed"].isin(chosen)] for each in (elastic, apart))
        return area(one, other, metric)

    whole, count = of(seeds), len(seeds)
    if count == 1:
        return whole, float("nan")
    without = np.array([of([other for other in seeds if other != seed]) for seed in seeds])
    pseudo = count * whole - (count - 1) * without
    return float(pseudo.mean()), float(half_interval(pseudo.std(ddof=1), count))


def area(one: pd.DataFrame, other: pd.DataFrame, metric: str) -> float:
    """Mean of log(one / other) over log compute, where both curves are."""
    curves = [curve(each, metric) for each in (one, other)]
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([[low, high], *(x for x, _ in curves)]))
    x = x[(x >= low) & (x <= high)]
    first, second = (np.interp(x, *each) for each in curves)
    return float(np.trapezoid(first - second, x) / (high - low))


def curve(group: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Log compute, and the log of the best quality that it buys, of means over seeds."""
    means = group.groupby(COST)[metric].mean()
    costs = means.index.to_numpy(float)
    return np.log(costs), np.minimum.accumulate(np.log(means.to_numpy(float)))


# --- the figure -----------------------------------------------------------------------------------


def draw(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> Figure:
    """Quality over MACs a sample, both in logarithms; bars are 95 % t intervals over seeds."""
    lines = points(table, metric, protocol)
    metric = quality_of(lines, metric)
    with_logarithms(lines, metric)
    with style.canvas(note(table, metric, protocol), size=(6.4, 4.4)) as (figure, [axes]):
        style.log_axes(axes, COSTS[COST], f"{metric} (lower is better)")
        curves = series(lines)
        bars(axes, lines, metric)
        for each in curves:
            draw_series(axes, each, metric)
        marks(axes, curves, metric)
        lowest = floor(axes, result_table.comparable(table, protocol), metric)
        # An interval that reaches near 0 would take most of a log axis.
        least = min(lines[metric].min() / 3, 0.8 * lowest)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], least))
        style.label_ends(axes, [place(each, metric) for each in most_telling(curves, metric)])
    return figure


def draw_series(axes: Axes, each: Series, metric: str) -> None:
    """The line of a curve: dotted through models trained apart, dashed beyond training."""
    found, colour = each.points, style.look(each.kind)[0]
    if not constant(found).all():  # schedules are points, no curve
        return
    beyond = found["loops"] > found["loops_train"]
    inside = found[~beyond]
    dashes = ":" if APART in each.name else "-"
    axes.plot(inside[COST], inside[metric], dashes, color=colour, alpha=0.9)
    if beyond.any():
        outside = pd.concat([inside.iloc[-1:], found[beyond]])
        axes.plot(outside[COST], outside[metric], "--", color=colour, alpha=0.7)


def marks(axes: Axes, curves: list[Series], metric: str) -> None:
    """The points of all curves, a kind at a time: they may be many."""
    for kind in dict.fromkeys(each.kind for each in curves):
        colour, marker = style.look(kind)
        found = pd.concat([each.points for each in curves if each.kind == kind])
        for hollow, group in found.groupby(found["loops"] > found["loops_train"]):
            face = "white" if hollow else colour
            axes.plot(
                group[COST],
                group[metric],
                marker,
                color=colour,
                markerfacecolor=face,
                rasterized=len(group) > style.MANY,
            )


def bars(axes: Axes, lines: pd.DataFrame, metric: str) -> None:
    """The intervals of all points, as one collection: they may be many."""
    known = lines.dropna(subset=["plus_minus"])
    low = (known[metric] - known["plus_minus"]).clip(lower=1e-3 * known[metric])
    x, high = known[COST], known[metric] + known["plus_minus"]
    colours = [style.look(kind)[0] for kind in known["kind"]]
    segments = np.stack([np.column_stack([x, low]), np.column_stack([x, high])], axis=1)
    axes.add_collection(LineCollection(list(segments), colors=colours, linewidths=1, alpha=0.6))
    axes.collections[-1].set_rasterized(len(known) > style.MANY)


def place(each: Series, metric: str) -> tuple[float, float, str, str]:
    last = each.points.iloc[-1]
    return last[COST], last[metric], each.name, style.look(each.kind)[0]


def most_telling(curves: list[Series], metric: str) -> list[Series]:
    """As many as have room for their names: those that come lowest."""
    return sorted(curves, key=lambda each: each.points[metric].min())[:LABELS]


def floor(axes: Axes, rows: pd.DataFrame, metric: str) -> float:
    """Draws what two halves of the real data differ by, where the rows say it; that, or infinity."""
    if metric != "fd_classifier" or "fd_halves" not in rows or rows["fd_halves"].isna().all():
        return float("inf")
    height = float(rows["fd_halves"].mean())
    axes.axhline(height, color=style.GREY, linestyle=":", linewidth=1)
    axes.annotate(
        "two halves of the real data",
        (0.01, height),
        xycoords=axes.get_yaxis_transform(),
        va="bottom",
        color=style.GREY,
        fontsize=7,
    )
    return height


def note(table: pd.DataFrame, metric: str, protocol: str | None) -> str:
    tax = "; ".join(taxed(row) for row in elasticity_tax(table, metric, protocol).itertuples())
    return caption(table, metric, protocol) + (f". Elasticity tax: {tax}" if tax else "")


def taxed(row: Any) -> str:
    """One line of elasticity_tax in words."""
    seeds = f"{row.seeds} seeds" if row.seeds > 1 else "one seed: no interval"
    span = f" ({row.low:+.0%} to {row.high:+.0%})" if np.isfinite(row.low) else ""
    of = f"{row.loops_from:g} to {row.loops_to:g} of {row.loops_train:g} loops"
    return f"{row.arm} {row.tax:+.0%}{span} over {of}, {seeds}"


# --- the table ------------------------------------------------------------------------------------


def text(lines: pd.DataFrame, metric: str) -> str:
    """The points as a table to read."""
    split = [
        f"{layers}N x {loops}L"
        for layers, loops in zip(lines["unique_layers"], lines["loops_train"], strict=True)
    ]
    names = {
        "params_total": "params",
        "images_seen": "images",
        "train_flops_total": "train_flops",
    }
    order = ["arm", "loops", "split", "loops_train", "params", COST, "images", "train_flops"]
    shown = lines.assign(split=split).rename(columns=names)
    shown = shown[[*order, "seeds", metric, "plus_minus", "accuracy"]]
    shown = shown.dropna(axis="columns", how="all")
    digits = "{:,.2f}" if shown[metric].min() >= 1 else "{:,.4f}"
    formats = FORMATS | dict.fromkeys([metric, "plus_minus"], digits.format)
    return shown.to_string(index=False, formatters=formats, na_rep="")


FORMATS = {
    "loops": "{:.3g}".format,
    "params": "{:,.0f}".format,
    "macs_per_sample": "{:,.0f}".format,
    "images": "{:,.0f}".format,
    "train_flops": "{:.3g}".format,
    "accuracy": "{:.3f}".format,
}


def main(table: pd.DataFrame, asked: Any) -> None:
    lines = points(table, asked.metric, asked.protocol)
    metric = quality_of(lines, asked.metric)
    print(text(lines, metric))
    found = elasticity_tax(table, metric, asked.protocol)
    for line in found.itertuples():
        print(f"elasticity tax: {taxed(line)}")
    if found.empty:
        print(f"elasticity tax: {NO_TAX}", file=sys.stderr)
    print(f"figure: {style.save(draw(table, metric, asked.protocol), asked.out)[0]}")


if __name__ == "__main__":
    command.run(main, str(__doc__), out="anytime.png", metric=None, protocol=None)
