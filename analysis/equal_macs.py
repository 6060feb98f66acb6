"""Curves over sampling steps next to each other at equal MACs per sample: more loops, or more steps?

One curve is the baseline. The other curve is interpolated at the MACs of its points, and the differences are
paired over seeds.
"""

import numpy as np
import pandas as pd

from eltlab.analysis.anytime import COST
from eltlab.analysis.comparison import Value, mean_difference
from eltlab.analysis.points import ALIKE, UNIQUE, VANILLA, has_constant_loops
from eltlab.analysis.step_curves import choose_distance, step_seeds
from eltlab.common.errors import UserError, suggest

MEAN = "mean"  # in place of a number of steps


def match_macs(seeds: pd.DataFrame, curve: str, baseline: str, metric: str) -> pd.DataFrame:
    """Both curves at the MACs per sample of the baseline's points, for the seeds that both have.

    The other curve is interpolated linearly in log MACs between its numbers of steps. Points of the baseline
    outside of its range (by more than 5 %) are omitted, and so are those that a seed lacks.

    seeds: from `step_seeds`. Returns the columns curve and baseline, by steps (of the baseline) and seed.
    """
    known = list(seeds["arm"].unique())
    for name in (curve, baseline):
        if name not in known:
            raise UserError(f"{name}: {suggest(name, known, 'curves')}")
    one, other = (seeds[seeds["arm"] == name].sort_values(COST) for name in (curve, baseline))
    shared = sorted(set(one["seed"]) & set(other["seed"]))
    found = []
    for seed in shared:
        x, y = (one.loc[one["seed"] == seed, column].to_numpy(float) for column in (COST, metric))
        own = other[other["seed"] == seed]
        own = own[own[COST].between(x[0] / ALIKE, x[-1] * ALIKE)]
        values = np.interp(np.log(own[COST]), np.log(x), y)
        found.append(
            pd.DataFrame({"curve": values, "baseline": own[metric], "steps": own["steps"], "seed": seed})
        )
    if not found:
        raise UserError(f"{curve} and {baseline}: no seed is shared")
    lines = pd.concat(found).set_index(["steps", "seed"])
    complete = lines.groupby("steps")["curve"].transform("size") == len(shared)
    return lines[complete]


def difference(
    table: pd.DataFrame,
    curve: str,
    baseline: str,
    metric: str | None = None,
    protocol: str | None = None,
    steps: int | None = None,
) -> Value:
    """How far a curve is above the baseline at equal MACs per sample, paired over seeds: better below 0.

    steps: at this number of steps of the baseline; None: the mean over all that can be compared. Raises
    UserError if there is none.
    """
    metric = choose_distance(table, metric)
    found = differences(step_seeds(table, metric, protocol), curve, baseline, metric)
    key = MEAN if steps is None else str(steps)
    if key not in found:
        known = ", ".join(each for each in found if each != MEAN) or "no number of steps"
        raise UserError(f"{curve} has the MACs of {baseline} at {known}, not at {steps or 'any'}")
    return found[key]


def differences(seeds: pd.DataFrame, curve: str, baseline: str, metric: str) -> dict[str, Value]:
    """The differences of `difference` by number of steps as text, and their mean; empty if there is none."""
    lines = match_macs(seeds, curve, baseline, metric)
    found = {
        str(steps): mean_difference(*(group.droplevel("steps")[name] for name in ("curve", "baseline")))
        for steps, group in lines.groupby("steps")
    }
    if found:
        means = lines.groupby("seed").mean()
        found[MEAN] = mean_difference(means["curve"], means["baseline"])
    return found


def difference_rows(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None, baseline: str | None = None
) -> list[list[str]]:
    """The differences of all curves from the baseline, headings first: a column per its number of steps."""
    metric = choose_distance(table, metric)
    seeds = step_seeds(table, metric, protocol)
    baseline = baseline or choose_baseline(seeds)
    counts = sorted(seeds.loc[seeds["arm"] == baseline, "steps"].unique())
    rows = [[f"at the MACs of {baseline}", *(f"{count} steps" for count in counts), MEAN]]
    for curve in (curve for curve in seeds["arm"].unique() if curve != baseline):
        found = differences(seeds, curve, baseline, metric)
        rows.append([curve, *(str(found.get(str(key), "")) for key in [*counts, MEAN])])
    return rows


def choose_baseline(seeds: pd.DataFrame) -> str:
    """The first arm at its trained loops: an elastic one if there is one, else a vanilla loop."""
    trained = seeds[has_constant_loops(seeds) & (seeds["loops"] == seeds["loops_train"])]
    order = trained["kind"].map({VANILLA: 1, UNIQUE: 2}).fillna(0)
    return str(pd.concat([trained.loc[order.sort_values(kind="stable").index], seeds])["arm"].iloc[0])
