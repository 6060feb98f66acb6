"""What does one factor change? Paired differences over shared seeds, one row per level.

    python -m eltlab.analysis.ablation [baseline=plain] [loops=2] [out=ablation.png] [ROWS …]
    python -m eltlab.analysis.ablation factor=supervision.name baseline=final [ROWS …]

Without factor=, every arm is compared with the baseline: an arm named plain, base or final, else the only
arm with unique layers. With factor=KEY, runs that differ in this key alone are compared, and the differences
of one seed are averaged first. Each run is taken at the loop count it was trained for, or at loops=.
Intervals are t intervals of the paired differences; p-values are from paired t tests with Holm's correction
for the number of rows. Prints the table and the importance of each key (fANOVA by Optuna), and draws the
ratios.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from eltlab.analysis import command, comparable_rows, style
from eltlab.analysis.points import (
    caption,
    check_logarithms,
    choose_metric,
    half_interval,
    name_arms,
    nearly_equal,
)
from eltlab.common.errors import UserError, suggest
from eltlab.common.text import format_si

ARM = "arm"
BASELINES = ("plain", "base", "final")  # arms that are the baseline by default
TREES = 64
SHOWN = 40  # levels that a figure has room for
# Keys that follow from other keys or do not describe the model.
DERIVED_KEYS = (
    *("seed", "name", "study", "trial", "runs_dir", "evaluate", "evaluate_loops", "unique_layers"),
    *("budget.images", "budget.train_flops", "budget.match"),
)


def select_runs(
    table: pd.DataFrame, metric: str | None, loops: int | None, protocol: str | None
) -> tuple[pd.DataFrame, str]:
    """One row per run at one loop count, with the arm's short name; and the metric."""
    rows = name_arms(comparable_rows.comparable(table, protocol))
    metric = choose_metric(rows, metric)
    rows = rows[rows["loop_schedule"] == "constant"].dropna(subset=[metric])
    rows = rows[rows["loops"] == (rows["loops_train"] if loops is None else loops)]
    if rows.empty:
        at = "the loop count it was trained for" if loops is None else f"loops={loops}"
        raise UserError(f"no run was measured at {at}")
    # Sampling seeds of one run are averaged, because they are not independent runs.
    means = rows.groupby("run")[metric].transform("mean")
    return rows.assign(**{metric: means}).drop_duplicates("run"), metric


def paired_differences(
    table: pd.DataFrame,
    factor: str = ARM,
    baseline: str | None = None,
    metric: str | None = None,
    loops: int | None = None,
    protocol: str | None = None,
) -> pd.DataFrame:
    """Compares each level of a factor with the baseline, over the seeds that both have.

    Returns one line per level: level, baseline, seeds, difference (mean of level − baseline, in the
    metric's units), plus_minus (half its 95 % t interval), ratio (geometric mean of level / baseline),
    ratio_low and ratio_high (its 95 % t interval, computed in logarithms), p and p_holm (paired t test
    of the logarithms). Intervals and p-values are NaN for one seed.
    """
    rows, metric = select_runs(table, metric, loops, protocol)
    key = factor if factor == ARM else f"cfg.{factor}"
    if key not in rows:
        known = [name.removeprefix("cfg.") for name in rows if name.startswith("cfg.")]
        raise UserError(f"factor={factor}: {suggest(factor, known, 'keys')}")
    check_logarithms(rows, metric)
    rows = rows.assign(level=rows[key].astype(str))
    baseline = choose_baseline(rows, factor, baseline)
    # Pairs of arms share the seed; pairs for a factor share every other key as well.
    others = [] if factor == ARM else other_keys(rows, factor)
    rows = rows.assign(**{key: rows[key].astype(str) for key in others})  # some are lists
    check_pairs(rows, factor, baseline, others)
    pairs = rows.pivot_table(metric, ["seed", *others], "level", aggfunc="mean", dropna=False)
    lines = summarize_pairs(pairs, baseline)
    if lines.empty:
        raise UserError(
            f"no run with {factor}={baseline} shares its seed (and every other key) with a second run; "
            "give arms the same seeds"
        )
    return lines.assign(p_holm=correct_by_holm(lines["p"].to_numpy()))


def choose_baseline(rows: pd.DataFrame, factor: str, requested: str | None) -> str:
    """The requested level, else an arm named plain, base or final, else the only arm with unique layers."""
    levels = [str(level) for level in rows["level"].unique()]
    if requested is not None:
        if requested not in levels:
            hint = suggest(requested, levels, f"levels of {factor}")
            raise UserError(f"baseline={requested}: {hint}")
        return requested
    if len(levels) < 2:
        raise UserError(f"factor={factor}: all rows have {', '.join(levels)}; nothing to compare")
    unique = rows.loc[(factor == ARM) & (rows["loops_train"] == 1), "level"].unique()
    known = [level for level in BASELINES if level in levels] or list(unique)
    if len(known) != 1:
        raise UserError(f"which is the baseline? Give baseline= one of {', '.join(levels)}")
    return str(known[0])


def check_pairs(rows: pd.DataFrame, factor: str, baseline: str, others: list[str]) -> None:
    """Raises UserError if a level and a seed name several arms, or if a level's budget does not match the
    baseline's in images or FLOPs (within 5 %)."""
    keys = ["level", "seed", *others]
    for index, arms in rows.groupby(keys, dropna=False)["arm"].unique().items():
        if len(arms) > 1:
            level = index[0] if isinstance(index, tuple) else index
            raise UserError(
                f"{factor}={level} stands for several arms ({', '.join(arms)}), which differ in keys that "
                "follow from other keys; name the rows to compare"
            )
    budgets = rows.groupby("level")[["images_seen", "train_flops_total"]].median()
    own = budgets.loc[baseline]
    for level, budget in budgets.iterrows():
        if not any(nearly_equal(budget[key], own[key]) for key in budgets):
            raise UserError(
                f"{factor}={level} was trained for {format_si(budget['images_seen'])} images and "
                f"{format_si(budget['train_flops_total'])} FLOPs, {baseline} for "
                f"{format_si(own['images_seen'])} and {format_si(own['train_flops_total'])}: "
                "neither is matched; name the rows to compare"
            )


def other_keys(rows: pd.DataFrame, factor: str) -> list[str]:
    """The columns cfg.KEY that differ among rows, without the factor and the keys of its group."""
    group = factor.rpartition(".")[0] + "." if factor.endswith(".name") else None
    return [
        key
        for key in varying_keys(rows)
        if key != f"cfg.{factor}" and not (group and key.startswith(f"cfg.{group}"))
    ]


def varying_keys(rows: pd.DataFrame) -> list[str]:
    """The columns cfg.KEY that differ among rows and do not follow from other keys."""
    keys = [
        name for name in rows if name.startswith("cfg.") and name.removeprefix("cfg.") not in DERIVED_KEYS
    ]
    return [key for key in keys if rows[key].astype(str).nunique() > 1]


def summarize_pairs(pairs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The lines of `paired_differences`, without p_holm.

    pairs: one column per level, one row per seed and combination of other keys.
    """
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


def correct_by_holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values; NaN stays NaN and is not counted."""
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
    """The share of the variance of log quality that each key explains (fANOVA over random trees, by Optuna).

    A series by key, in descending order, that sums to 1; keys that always change together share one line.
    Empty if fewer than two keys differ.
    """
    rows, metric = select_runs(table, metric, loops, protocol)
    check_logarithms(rows, metric)
    groups: dict[tuple[float, ...], list[str]] = {}
    for key in varying_keys(rows):
        groups.setdefault(change_pattern(to_values(rows[key])), []).append(key)
    # Keys that change together (heads and MLP width with the width) cannot be distinguished.
    keys = {" + ".join(k.removeprefix("cfg.") for k in group): group[0] for group in groups.values()}
    if len(keys) < 2:
        return pd.Series(dtype=float)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"])
    columns = {name: to_values(rows[key]) for name, key in keys.items()}
    space = {name: to_distribution(column) for name, column in columns.items()}
    for number, value in enumerate(np.log(rows[metric])):
        params = {name: column.iloc[number] for name, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values are equal, so there is nothing to explain
        return pd.Series(dtype=float)
    return pd.Series(found, dtype=float)


def change_pattern(column: pd.Series) -> tuple[float, ...]:
    """Equal for keys that change together: linearly related numbers, or names that map one to one."""
    if column.dtype != float:
        return tuple(pd.factorize(column)[0])
    scaled = (column - column.iloc[0]) / (column.max() - column.min())
    sign = np.sign(scaled[scaled != 0].iloc[0])
    return tuple((sign * scaled).round(9))


def to_values(column: pd.Series) -> pd.Series:
    """Numbers as floats, anything else as text: trees may split numbers by order, but not names."""
    present = column.dropna()
    numeric = len(present) == len(column) and not present.map(type).isin([bool, str, list]).any()
    return column.astype(float) if numeric else column.astype(str)


def to_distribution(column: pd.Series) -> Any:
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
    """The ratio of each level to the baseline with its interval, on a log axis."""
    lines = paired_differences(table, factor, baseline, metric, loops, protocol)
    most = lines["ratio"].map(np.log).abs().nlargest(SHOWN).index
    shown, every = lines.loc[most].sort_values("ratio", ascending=False), len(lines)
    metric = choose_metric(comparable_rows.comparable(table, protocol), metric)
    at = "the loops they were trained for" if loops is None else f"{loops} loops"
    text = f"{caption(table, metric, protocol)}; at {at}; paired over seeds, p by Holm"
    text += f"; the {SHOWN} of {every} levels that differ most" if every > SHOWN else ""
    height = 1.2 + 0.28 * len(shown)
    with style.canvas(text, size=(6.4, height)) as (figure, [axes]):
        for place, line in enumerate(shown.itertuples()):
            axes.plot([line.ratio_low, line.ratio_high], [place, place], color="#0072B2")
            axes.plot(line.ratio, place, "o", color="#0072B2")
            p = f"p = {line.p_holm:.2g}" if np.isfinite(line.p_holm) else "one seed: no interval"
            axes.annotate(p, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7)
        axes.axvline(1, color=style.GREY, linewidth=1)
        axes.set_yticks(range(len(shown)), list(shown["level"]))
        axes.set_ylim(-0.6, len(shown) - 0.4)
        style.set_log_axes(axes, f"{metric} ÷ that of {shown['baseline'].iloc[0]} (below 1 is better)")
    return figure


def main(table: pd.DataFrame, keys: Any) -> None:
    loops = parse_loops("loops", keys.loops)
    how = (keys.factor, keys.baseline, keys.metric, loops, keys.protocol)
    lines = paired_differences(table, *how)
    print(lines.to_string(index=False, float_format="{:.4g}".format, na_rep="no interval"))
    shares = importance(table, keys.metric, loops, keys.protocol)
    for key, share in shares.items():
        print(f"importance of {key}: {share:.1%}")
    print(f"figure: {style.save(draw(table, *how), keys.out)[0]}")


def parse_loops(key: str, text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"{key}={text}: give a whole number above 0")
    return None if text is None else int(text)


if __name__ == "__main__":
    unset = dict.fromkeys(["baseline", "loops", "metric", "protocol"])
    command.run_analysis(main, str(__doc__), out="ablation.png", factor=ARM, **unset)
