"""Curves over sampling steps: each arm at one loop count, one loop schedule or one halting threshold.

The rows measure each training at several numbers of sampling steps. Names of curves: elastic@2 (two loops),
elastic 4to1 (a schedule), elastic halting 0.1, and twin for an arm that does not loop. Their quality is a
distance of samples whose differences are unbiased: the held-out loss does not depend on steps.
"""

import re
from typing import Any

import pandas as pd

from eltlab.analysis.anytime import COST
from eltlab.analysis.metrics import SAMPLED, choose_metric, measured
from eltlab.analysis.pareto import non_dominated
from eltlab.analysis.points import has_constant_loops, points, seed_points
from eltlab.common.errors import UserError

FRONT = "front"
MARK = re.compile(r" in (\d+) steps")  # in the names of arms while points are made


def step_points(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One line per curve and number of sampling steps: `points.points`, averaged over seeds.

    arm is the name of the curve. Further columns: steps, and front (whether no point of any curve has a lower
    distance at as few MACs, or as low a distance at fewer). Raises UserError as `points` does, and if
    all rows have one number of steps.
    """
    rows, metric = name_steps(table), choose_distance(table, metric)
    lines = name_curves(points(rows, metric, protocol))
    lines[FRONT] = non_dominated(lines[COST], lines[metric])
    return lines.sort_values(["arm", "steps"], key=in_first_order, kind="stable", ignore_index=True)


def step_seeds(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """The same by training seed (`points.seed_points`), without front."""
    rows, metric = name_steps(table), choose_distance(table, metric)
    return name_curves(seed_points(rows, metric, protocol))


def choose_distance(table: pd.DataFrame, metric: str | None = None) -> str:
    """The metric, or the first unbiased distance of samples. Raises UserError for other metrics."""
    if metric is not None and metric not in SAMPLED:
        raise UserError(
            f"metric={metric}: steps are compared by {', '.join(SAMPLED)}, whose differences are unbiased"
        )
    known = measured(table, SAMPLED)
    if metric is None and not known:
        raise UserError(f"the rows have no unbiased distance of samples ({', '.join(SAMPLED)})")
    return choose_metric(table, metric or known[0])


def name_steps(table: pd.DataFrame) -> pd.DataFrame:
    """The evaluations with their steps in the names of arms, so that none is chosen. Raises UserError if
    there is one number of steps."""
    rows = table[table["kind"] == "eval"]
    counts = sorted(rows["steps"].dropna().unique()) if "steps" in rows else []
    if len(counts) < 2:
        raise UserError(
            "requires rows of several numbers of sampling steps; measure them with python -m eltlab.evaluate "
            "run=DIR 'sampler.steps=[4,8,16]'"
        )
    names = rows["name"] + rows["steps"].map(" in {:g} steps".format)
    return rows.assign(name=names, steps=", ".join(f"{count:g}" for count in counts))


def remove_steps(names: pd.Series) -> pd.Series:
    """The names without what `name_steps` adds."""
    return names.str.replace(MARK, "", regex=True)


def name_curves(lines: pd.DataFrame) -> pd.DataFrame:
    """The lines with the names of curves as arm, and their steps."""
    arm = remove_steps(lines["arm"])
    threshold = lines["requested"].str.extract(r"halting ([\d.e-]+)")[0]
    looped = has_constant_loops(lines) & ~((lines["requested"] == "1") & (lines["loops_train"] == 1))
    name = arm.where(~looped, arm + "@" + lines["requested"])
    name = name.where(threshold.isna(), arm + " " + threshold.fillna(""))
    return lines.assign(arm=name, steps=lines["arm"].str.extract(MARK)[0].astype(int))


def in_first_order(column: pd.Series) -> Any:
    """Text in the order of its first appearance, for sort_values; numbers as they are."""
    return column if column.dtype.kind in "iuf" else pd.factorize(column)[0]
