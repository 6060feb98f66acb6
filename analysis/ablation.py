"""What does one factor change? Paired differences over shared seeds, a row a factor.

    python -m eltlab.analysis.ablation [baseline=plain] [loops=2] [out=ablation.png] [ROWS …]
    python -m eltlab.analysis.ablation factor=supervision.name baseline=final [ROWS …]

Without factor= every arm is compared with the baseline: an arm called plain, base or final, else the only
one of unique layers. With factor=, a key of the configuration, runs are compared that differ in this key
alone, and differences of one seed are averaged first. Each run at the loop count that it was trained for,
or at loops=. Intervals are t intervals of the paired differences; p-values are of paired t tests, corrected
for the number of rows by Holm. Prints the table and which keys matter most (fANOVA, by Optuna), and draws
the ratios.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from eltlab.analysis import command, style
from eltlab.analysis.points import (
    alike,
    caption,
    half_interval,
    named,
    quality_of,
    with_logarithms,
)
from eltlab.common.errors import UserError, suggest
from eltlab.common.text import format_si
from eltlab.runs import result_table

ARM = "arm"
BASELINES = ("plain", "base", "final")  # arms that are the baseline where nobody says
TREES = 64
SHOWN = 40  # levels that a figure has room for
# What follows from other keys, or says nothing of the model.
FOLLOWING = (
    *("seed", "name", "study", "trial", "runs_dir", "evaluate", "evaluate_loops", "unique_layers"),
    *("budget.images", "budget.train_flops", "budget.match"),
)


def measured(
    table: pd.DataFrame, metric: str | None, loops: int | None, protocol: str | None
) -> tuple[pd.DataFrame, str]:
    """One row a run at one loop count, with the arm's short name; and the metric."""
    rows = named(result_table.comparable(table, protocol))
    metric = quality_of(rows, metric)
    rows = rows[rows["loop_schedule"] == "constant"].dropna(subset=[metric])
    rows = rows[rows["loops"] == (rows["loops_train"] if loops is None else loops)]
    if rows.empty:
        at = "the loop count it was trained for" if loops is None else f"loops={loops}"
        raise UserError(f"no run was measured at {at}")
    # Sampling seeds of one run are no independent runs.
    means = rows.groupby("run")[metric].transform("mean")
    return rows.assign(**{metric: means}).drop_duplicates("run"), metric


def paired(
    table: pd.DataFrame,
    factor: str = ARM,
    baseline: str | None = None,
    metric: str | None = None,
    loops: int | None = None,
    protocol: str | None = None,
) -> pd.DataFrame:
    """Every level of a factor against its baseline, over the seeds that both have.

    Returns one line a level: level, baseline, seeds, difference (mean of level − baseline, in the metric's
    units), plus_minus (half its 95 % t interval), ratio (geometric mean of level / baseline), ratio_low
    and ratio_high (its 95 % t interval, taken in logarithms), p and p_holm (paired t test of the
    logarithms). Intervals and p-values of one seed are NaN.
    """
    rows, metric = measured(table, metric, loops, protocol)
    key = factor if factor == ARM else f"cfg.{factor}"
    if key not in rows:
        known = [name.removeprefix("cfg.") for name in rows if name.startswith("cfg.")]
        raise UserError(f"factor={factor}: {suggest(factor, known, 'keys')}")
    with_logarithms(rows, metric)
    rows = rows.assign(level=rows[key].astype(str))
    baseline = baseline_of(rows, factor, baseline)
    # Of the arms, pairs share the seed; of a factor, every other key too.
    others = [] if factor == ARM else others_of(rows, factor)
    rows = rows.assign(**{key: rows[key].astype(str) for key in others})  # some are lists
    check_pairs(rows, factor, baseline, others)
    pairs = rows.pivot_table(metric, ["seed", *others], "level", aggfunc="mean", dropna=False)
    lines = compared(pairs, baseline)
    if lines.empty:
        raise UserError(
            f"no run with {factor}={baseline} shares its seed (and every other key) with another; "
            "give arms the same seeds"
        )
    return lines.assign(p_holm=holm(lines["p"].to_numpy()))


def baseline_of(rows: pd.DataFrame, factor: str, asked: str | None) -> str:
    """The level that the others are compared with: the one asked for, an arm called plain, base or final, or
    the only arm of unique layers."""
    levels = [str(level) for level in rows["level"].unique()]
    if asked is not None:
        if asked not in levels:
            raise UserError(f"baseline={asked}: {suggest(asked, levels, f'levels of {factor}')}")
        return asked
    if len(levels) < 2:
        raise UserError(f"factor={factor}: all rows have {', '.join(levels)}, nothing to compare")
    unique = rows.loc[(factor == ARM) & (rows["loops_train"] == 1), "level"].unique()
    known = [level for level in BASELINES if level in levels] or list(unique)
    if len(known) != 1:
        raise UserError(f"which is the baseline? Give baseline= one of {', '.join(levels)}")
    return str(known[0])


def check_pairs(rows: pd.DataFrame, factor: str, baseline: str, others: list[str]) -> None:
    """Raises UserError where a level and a seed stand for several arms, or where a level is trained for
    another budget than the baseline: neither as many images nor as many FLOPs (5 %)."""
    keys = ["level", "seed", *others]
    for index, arms in rows.groupby(keys, dropna=False)["arm"].unique().items():
        if len(arms) > 1:
            level = index[0] if isinstance(index, tuple) else index
            raise UserError(
                f"{factor}={level} stands for several arms ({', '.join(arms)}), which differ in what "
                "follows from other keys; name the rows to compare"
            )
    budgets = rows.groupby("level")[["images_seen", "train_flops_total"]].median()
    own = budgets.loc[baseline]
    for level, budget in budgets.iterrows():
        if not any(alike(budget[key], own[key]) for key in budgets):
            raise UserError(
                f"{factor}={level} was trained for {format_si(budget['images_seen'])} images and "
                f"{format_si(budget['train_flops_total'])} FLOPs, {baseline} for "
                f"{format_si(own['images_seen'])} and {format_si(own['train_flops_total'])}: "
                "neither is matched; name the rows to compare"
            )


def others_of(rows: pd.DataFrame, factor: str) -> list[str]:
    """The keys that differ beside the factor and what belongs to it, as columns of cfg."""
    group = factor.rpartition(".")[0] + "." if factor.endswith(".name") else None
    return [
        key
        for key in varying(rows)
        if key != f"cfg.{factor}" and not (group and key.startswith(f"cfg.{group}"))
    ]


def varying(rows: pd.DataFrame) -> list[str]:
    """The columns of the configuration's keys that differ among rows and do not follow from others."""
    keys = [
        name
        for name in rows
        if name.startswith("cfg.") and name.removeprefix("cfg.") not in FOLLOWING
    ]
    return [key for key in keys if rows[key].astype(str).nunique() > 1]


def compared(pairs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The lines of `paired` but p_holm: pairs has a column a level and a row a seed and other keys."""
    levels = pairs.drop(columns=baseline)
    difference = levels.sub(pairs[baseline], axis="index").groupby("seed").mean()
    logs = np.log(levels).sub(np.log(pairs[baseline]), axis="index").groupby("seed").mean()
    count = logs.count()
    half, log_half = (half_interval(each.std(), count) for each in (difference, logs))
    mean = logs.mean()
    spread = logs.std() / np.sqrt(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stats.t.sf(np.abs(mean / spread), count - 1)
    lines = pd.DataFrame(
        {
            "baseline": baseline,
            "seeds": count,
            "difference": difference.mean(),
            "plus_minus": half,
            "ratio": np.exp(mean),
            "ratio_low": np.exp(mean - log_half),
            "ratio_high": np.exp(mean + log_half),
            "p": p,
        }
    )
    return lines[count > 0].rename_axis("level").reset_index()


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values; NaN stays NaN and does not count."""
    corrected = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = largest
    return corrected


# --- importance -----------------------------------------------------------------------------------


def importance(
    table: pd.DataFrame,
    metric: str | None = None,
    loops: int | None = None,
    protocol: str | None = None,
) -> pd.Series:
    """How much of the variance of log quality each key explains (fANOVA over random trees, by Optuna).

    A series by key, falling, of sum 1; keys that always change together have one line. Empty where fewer
    than two keys differ: nothing competes.
    """
    rows, metric = measured(table, metric, loops, protocol)
    with_logarithms(rows, metric)
    groups: dict[tuple[float, ...], list[str]] = {}
    for key in varying(rows):
        groups.setdefault(pattern(values_of(rows[key])), []).append(key)
    # Keys that change together (heads and MLP with the width) explain the same, and have one share.
    keys = {
        " + ".join(k.removeprefix("cfg.") for k in group): group[0] for group in groups.values()
    }
    if len(keys) < 2:
        return pd.Series(dtype=float)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"])
    columns = {name: values_of(rows[key]) for name, key in keys.items()}
    space = {name: distribution(column) for name, column in columns.items()}
    for number, value in enumerate(np.log(rows[metric])):
        params = {name: column.iloc[number] for name, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values alike: there is nothing to explain
        return pd.Series(dtype=float)
    return pd.Series(found, dtype=float)


def pattern(column: pd.Series) -> tuple[float, ...]:
    """The same for keys that change together: numbers that are straight lines of each other, names one to
    one."""
    if column.dtype != float:
        return tuple(pd.factorize(column)[0])
    scaled = (column - column.iloc[0]) / (column.max() - column.min())
    sign = np.sign(scaled[scaled != 0].iloc[0])
    return tuple((sign * scaled).round(9))


def values_of(column: pd.Series) -> pd.Series:
    """Numbers as numbers, anything else as text: near numbers are near, near names are not."""
    present = column.dropna()
    numeric = len(present) == len(column) and not present.map(type).isin([bool, str, list]).any()
    return column.astype(float) if numeric else column.astype(str)


def distribution(column: pd.Series) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if column.dtype == float:
        return FloatDistribution(float(column.min()), float(column.max()))
    return CategoricalDistribution(sorted(column.unique()))


# --- the figure -----------------------------------------------------------------------------------


def draw(
    table: pd.DataFrame,
    factor: str = ARM,
    baseline: str | None = None,
    metric: str | None = None,
    loops: int | None = None,
    protocol: str | None = None,
) -> Figure:
    """The ratio of each level to the baseline with its interval, on a log axis; 1 is no difference."""
    lines = paired(table, factor, baseline, metric, loops, protocol)
    most = lines["ratio"].map(np.log).abs().nlargest(SHOWN).index
    shown, every = lines.loc[most].sort_values("ratio", ascending=False), len(lines)
    metric = quality_of(result_table.comparable(table, protocol), metric)
    at = "the loops they were trained for" if loops is None else f"{loops} loops"
    text = f"{caption(table, metric, protocol)}; at {at}; paired over seeds, p by Holm"
    text += f"; the {SHOWN} of {every} that differ most" if every > SHOWN else ""
    height = 1.2 + 0.28 * len(shown)
    with style.canvas(text, size=(6.4, height)) as (figure, [axes]):
        for place, line in enumerate(shown.itertuples()):
            axes.plot([line.ratio_low, line.ratio_high], [place, place], color="#0072B2")
            axes.plot(line.ratio, place, "o", color="#0072B2")
            p = f"p = {line.p_holm:.2g}" if np.isfinite(line.p_holm) else "one seed: no interval"
            axes.annotate(
                p, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7
            )
        axes.axvline(1, color=style.GREY, linewidth=1)
        axes.set_yticks(range(len(shown)), list(shown["level"]))
        axes.set_ylim(-0.6, len(shown) - 0.4)
        style.log_axes(axes, f"{metric} ÷ that of {shown['baseline'].iloc[0]} (below 1 is better)")
    return figure


def main(table: pd.DataFrame, asked: Any) -> None:
    loops = whole("loops", asked.loops)
    how = (asked.factor, asked.baseline, asked.metric, loops, asked.protocol)
    lines = paired(table, *how)
    print(lines.to_string(index=False, float_format="{:.4g}".format, na_rep="no interval"))
    shares = importance(table, asked.metric, loops, asked.protocol)
    for key, share in shares.items():
        print(f"importance of {key}: {share:.1%}")
    print(f"figure: {style.save(draw(table, *how), asked.out)[0]}")


def whole(key: str, text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"{key}={text}: give a whole number above 0")
    return None if text is None else int(text)


if __name__ == "__main__":
    command.run(
        main,
        str(__doc__),
        out="ablation.png",
        factor=ARM,
        baseline=None,
        loops=None,
        metric=None,
        protocol=None,
    )
