"""Loops or sampling steps: quality against inference compute over both, and their worth at equal compute.

    python -m eltlab.analysis.steps [out=steps.png] [metric=kid] [baseline=elastic@4] [protocol=ID] [ROWS …]

Every arm at one loop count or schedule is a curve over its numbers of sampling steps (`step_curves`). Prints
all points, with * on the front: those that no other point beats at as few MACs per sample. Then it compares
each curve with the baseline at equal MACs (`equal_macs`).
"""

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eltlab.analysis import command, style
from eltlab.analysis.anytime import COST, Curve, draw_curves, line_of
from eltlab.analysis.equal_macs import difference_rows
from eltlab.analysis.labels import End, column_height, label_ends
from eltlab.analysis.looks import MARKERS, Looks, looks_of
from eltlab.analysis.metrics import format_quality
from eltlab.analysis.points import caption, has_constant_loops
from eltlab.analysis.step_curves import FRONT, choose_distance, name_steps, remove_steps, step_points
from eltlab.common.text import format_si, format_table


def point_rows(lines: pd.DataFrame, metric: str) -> list[list[str]]:
    """The cells of the table of these points of `step_points`, headings first."""
    rows = [["arm", "loops", "steps", "MACs per sample", metric, "seeds", FRONT]]
    for line in lines.to_dict("records"):
        quality = format_quality(line[metric], line["plus_minus"], line["standard_error"])
        macs, mark = format_si(line[COST]), "*" * bool(line[FRONT])
        rows.append(
            [line["arm"], f"{line['loops']:.3g}", str(line["steps"]), macs, quality, str(line["seeds"]), mark]
        )
    return rows


def front_rows(table: pd.DataFrame) -> list[list[str]]:
    """The cells of the points on the front in order of their MACs, headings first."""
    lines = step_points(table)
    front = lines[lines[FRONT]].sort_values(COST)
    return [cells[:-1] for cells in point_rows(front, choose_distance(table))]


# --- the figure -----------------------------------------------------------------------------------


def draw(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> Figure:
    """Quality over MACs per sample on log axes (a linear one of quality with a value ≤ 0): one curve per arm
    and loop count over its sampling steps; schedules and halting are points; the front is grey."""
    lines = step_points(table, metric, protocol)
    metric, looks = choose_distance(table, metric), curve_looks(lines)
    curves = [
        Curve(str(name), group["kind"].iloc[0], group.sort_values(COST))
        for name, group in lines.groupby("arm", sort=False)
    ]
    rows = name_steps(table)
    text = caption(rows.assign(name=remove_steps(rows["name"])), metric, protocol)
    text += ". From left to right, each curve has more sampling steps. Grey: the points that no other beats"
    with style.canvas(text, size=(6.8, max(4.4, column_height(len(curves) + 1)))) as (figure, [axes]):
        draw_front(axes, lines, metric)
        draw_curves(axes, curves, lines, metric, looks)
        style.settle(figure)
        ends = [End(each.points[metric].iloc[-1], each.name, line_of(each, looks)) for each in curves]
        label_ends(axes, ends)
    return figure


def curve_looks(lines: pd.DataFrame) -> Looks:
    """Shades of an arm follow its loop counts; what has no constant loop count has its own hue and marker."""
    constant = has_constant_loops(lines)
    kinds = lines["kind"].where(constant, lines["kind"] + ", schedules")
    found = looks_of(lines.assign(kind=kinds, loops_train=lines["loops"]).drop_duplicates("arm"))
    markers = dict(zip(lines.loc[~constant, "arm"].unique(), cycle(MARKERS[5:]), strict=False))
    arms = {arm: look._replace(marker=markers.get(arm, look.marker)) for arm, look in found.arms.items()}
    return found._replace(arms=arms)


def draw_front(axes: Axes, lines: pd.DataFrame, metric: str) -> None:
    front = lines[lines[FRONT]].sort_values(COST)
    # The corners of the steps: a front holds until the next point.
    x, y = np.repeat(front[COST], 2)[1:], np.repeat(front[metric], 2)[:-1]
    axes.plot(x, y, color=style.GREY, linewidth=4, alpha=0.25)


def main(table: pd.DataFrame, keys: Any) -> None:
    lines = step_points(table, keys.metric, keys.protocol)
    metric = choose_distance(table, keys.metric)
    print(*format_table(point_rows(lines, metric)), sep="\n")
    print("\ndifferences at equal MACs per sample; below 0 the curve is better than the baseline")
    print(*format_table(difference_rows(table, metric, keys.protocol, keys.baseline)), sep="\n")
    print(f"figure: {style.save(draw(table, metric, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="steps.png", metric=None, protocol=None, baseline=None)
