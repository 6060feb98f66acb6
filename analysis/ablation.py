"""What does one factor change? Paired differences over shared seeds, one row per level.

    python -m eltlab.analysis.ablation [baseline=plain] [loops=2] [out=ablation.png] [ROWS …]
    python -m eltlab.analysis.ablation factor=supervision.name baseline=final [ROWS …]

Without factor=, every arm is compared with the baseline: an arm named plain, base or final, else the only
arm with unique layers. With factor=KEY, runs that differ in this key alone are compared, and the differences
of one seed are averaged first. Each run is taken at the loop count it was trained for, or at loops=.
Intervals are t intervals of the paired differences and log ratios; p-values are from paired t tests with
Holm's correction for the number of rows. Two arms count as different if p_holm is below 0.05. A metric that
is biased, or not above 0 by its error, has differences but no ratios, and so have arms that were measured at
different settings. Prints the table and the importance of each key (fANOVA by Optuna), and draws the ratios,
or else the differences.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eltlab.analysis import command, style
from eltlab.analysis.chosen_settings import arm_settings, choose_settings, reported_rows, why_unmatched
from eltlab.analysis.looks import arm_looks, base_look
from eltlab.analysis.metrics import choose_metric, why_no_ratio
from eltlab.analysis.paired import half_interval, ratio_intervals, t_test, why_no_logarithm
from eltlab.analysis.points import KINDS, caption, name_arms, nearly_equal
from eltlab.analysis.text_values import UNSET, as_text, name_omitted
from eltlab.analysis.tuned_values import tuned_keys
from eltlab.common.errors import UserError, suggest
from eltlab.common.text import format_si
from eltlab.runs.row_files import SETTINGS

ARM = "arm"
BASELINES = ("plain", "base", "final")  # arms that are the baseline by default
TREES = 64
SHOWN = 40  # levels that a figure has room for
# Keys that follow from other keys or do not describe the model.
DERIVED_KEYS = (
    *("seed", "name", "study", "trial", "runs_dir", "evaluate", "evaluate_loops", "unique_layers"),
    *("budget.images", "budget.train_flops", "budget.match", "tuned", "tuned_on"),
)


def select_runs(
    table: pd.DataFrame, metric: str | None, loops: int | None, protocol: str | None
) -> tuple[pd.DataFrame, str]:
    """One row per run at one loop count, with the arm's short name; and the metric."""
    rows = name_arms(reported_rows(table, protocol))
    metric = choose_metric(rows, metric)
    rows = rows[rows["loop_schedule"] == "constant"].dropna(subset=[metric])
    rows = rows[rows["loops"] == (rows["loops_train"] if loops is None else loops)]
    if rows.empty:
        at = "the loop count it was trained for" if loops is None else f"loops={loops}"
        raise UserError(f"no run was measured at {at}")
    # Sampling seeds of one run are averaged, because they are not independent runs.
    means = rows.groupby(["arm", "run"])[metric].transform("mean")
    return rows.assign(**{metric: means}).drop_duplicates(["arm", "run"]), metric


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
    of the logarithms, or of the differences if a ratio is missing), and no_ratio: why there are no ratios,
    or None. Intervals and p-values are NaN for one seed; ratios are NaN if the metric is biased or not above
    0 by its error, or if arms were measured at different settings.
    """
    rows, metric = select_runs(table, metric, loops, protocol)
    key = factor if factor == ARM else f"cfg.{factor}"
    if key not in rows:
        known = [name.removeprefix("cfg.") for name in rows if name.startswith("cfg.")]
        raise UserError(f"factor={factor}: {suggest(factor, known, 'keys')}")
    rows = rows.assign(level=as_text(rows[key]))
    rows = rows[rows["level"] != UNSET]  # a key of a supervision that these rows do not have
    baseline = choose_baseline(rows, factor, baseline)
    # Pairs of arms share the seed; pairs for a factor share every other key as well.
    others = [] if factor == ARM else other_keys(rows, factor)
    rows = rows.assign(**{key: as_text(rows[key]) for key in others})  # some are lists or unset
    check_pairs(rows, factor, baseline, others)
    # Not pivot_table, which without dropna makes a line for each combination of keys.
    groups = rows.groupby(["seed", *others, "level"])
    pairs, arms = groups[metric].mean().unstack("level"), groups["arm"].first().unstack("level")
    reason = no_ratio(rows, metric)
    reason = reason or why_unmatched_pairs(table, protocol, arms, baseline, metric, factor)
    lines = summarize_pairs(pairs, baseline, reason is None).assign(no_ratio=reason)
    if lines.empty:
        raise UserError(
            f"no run with {factor}={baseline} shares its seed (and every other key) with a second run; "
            "give arms the same seeds"
        )
    return lines.assign(p_holm=correct_by_holm(lines["p"].to_numpy()))


def no_ratio(rows: pd.DataFrame, metric: str) -> str | None:
    """One line that says why levels have no ratios; None if they have."""
    reason = why_no_ratio(rows, metric)
    if reason is not None:
        return reason
    reasons = why_no_logarithm(rows.assign(standard_error=rows.get(f"{metric}_se", np.nan)), metric)
    return f"{'; '.join(reasons)}, so only differences are shown" if len(reasons) else None


def why_unmatched_pairs(
    table: pd.DataFrame, protocol: str | None, pairs: pd.DataFrame, baseline: str, metric: str, factor: str
) -> str | None:
    """Why arms at different settings have no ratios (`chosen_settings.why_unmatched`); None if they have.

    pairs: the arms that are compared, one column per level. A setting that is the factor may differ.
    """
    rows, choices = choose_settings(table, protocol)
    settings = arm_settings(name_arms(rows), choices, metric)
    settings = settings.drop(columns=[column for column in settings if SETTINGS[column] == factor])
    if settings.empty:  # also without columns
        return None
    for level in pairs.columns.drop(baseline):
        for arms in pairs[[level, baseline]].dropna().drop_duplicates().to_numpy():
            reason = why_unmatched(settings, arms)
            if reason is not None:
                return f"{level}: {reason}"
    return None


def choose_baseline(rows: pd.DataFrame, factor: str, requested: str | None) -> str:
    """The requested level, else an arm named plain, base or final, else the only arm with unique layers."""
    levels = list(rows["level"].unique())
    if requested is not None:
        requested = to_level(requested)
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


def to_level(text: str) -> str:
    """The level that a user means: 0 for 0.0, as levels are written."""
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text


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
    """The columns cfg.KEY that differ among rows, do not follow from other keys and were not tuned."""
    left_out = {*DERIVED_KEYS, *tuned_keys(rows)}
    keys = [name for name in rows if name.startswith("cfg.") and name.removeprefix("cfg.") not in left_out]
    return [key for key in keys if as_text(rows[key]).nunique() > 1]


def summarize_pairs(pairs: pd.DataFrame, baseline: str, ratios: bool) -> pd.DataFrame:
    """The lines of `paired_differences`, without p_holm.

    pairs: one column per level, one row per seed and combination of other keys. ratios: whether the values
    have ratios.
    """
    levels = pairs.drop(columns=baseline)
    difference = levels.sub(pairs[baseline], axis="index").groupby("seed").mean()
    count = difference.count()
    lines = pd.DataFrame(
        {
            "baseline": baseline,
            "seeds": count,
            "difference": difference.mean(),
            "plus_minus": half_interval(difference.std(), count),
            **dict.fromkeys(["ratio", "ratio_low", "ratio_high"], np.nan),
            "p": t_test(difference),
        }
    )
    if ratios:
        logs = np.log(levels).sub(np.log(pairs[baseline]), axis="index").groupby("seed").mean()
        lines[["ratio", "ratio_low", "ratio_high"]] = ratio_intervals(logs)
        lines["p"] = t_test(logs)
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

    Of quality itself, not its logarithm, if it has no ratios (`no_ratio`): a constant bias changes no
    variance. A series by key, in descending order, that sums to 1; keys that always change together share
    one line. Empty if fewer than two keys differ.
    """
    rows, metric = select_runs(table, metric, loops, protocol)
    quality = np.log(rows[metric]) if no_ratio(rows, metric) is None else rows[metric]
    groups: dict[tuple[float, ...], list[str]] = {}
    for key in independent_keys(rows):
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
    for number, value in enumerate(quality):
        params = {name: column.iloc[number] for name, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=space, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError):  # all values are equal, so there is nothing to explain
        return pd.Series(dtype=float)
    return pd.Series(found, dtype=float)


def independent_keys(rows: pd.DataFrame) -> list[str]:
    """The varying keys, without those that differ only because some rows have another supervision (or
    objective), which does not have the key: its name explains that."""
    keys = varying_keys(rows)
    groups = tuple(key.removesuffix("name") for key in keys if key.endswith(".name"))
    missing = {key for key in keys if key.startswith(groups) and as_text(rows[key].dropna()).nunique() < 2}
    return [key for key in keys if key not in missing]


def change_pattern(column: pd.Series) -> tuple[float, ...]:
    """Equal for keys that change together: linearly related numbers, or names that map one to one."""
    if column.dtype != float:
        return tuple(pd.factorize(column)[0])
    scaled = (column - column.iloc[0]) / (column.max() - column.min())
    sign = np.sign(scaled[scaled != 0].iloc[0])
    return tuple((sign * scaled).round(9))


def to_values(column: pd.Series) -> pd.Series:
    """Numbers as floats, anything else as text: trees may split numbers by order, but not names."""
    numeric = column.notna().all() and column.map(type).isin([int, float]).all()
    return column.astype(float) if numeric else as_text(column)


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
    """The ratio of each level to the baseline with its interval, on a log axis; without ratios the
    difference, on a linear one."""
    lines = paired_differences(table, factor, baseline, metric, loops, protocol)
    ratios = lines["ratio"].notna().any()
    if ratios:
        lines = lines.assign(value=lines["ratio"], low=lines["ratio_low"], high=lines["ratio_high"])
    else:
        low, high = (lines["difference"] + sign * lines["plus_minus"] for sign in (-1, 1))
        lines = lines.assign(value=lines["difference"], low=low, high=high)
    size = np.log(lines["value"]) if ratios else lines["value"]
    order = size.abs().sort_values(ascending=False).index
    shown = lines.loc[order[:SHOWN]].sort_values("value", ascending=False)
    metric = choose_metric(reported_rows(table, protocol), metric)
    at = "the loops they were trained for" if loops is None else f"{loops} loops"
    text = f"{caption(table, metric, protocol)}; at {at}; paired over seeds, p by Holm"
    looks = arm_looks(table, protocol).arms if factor == ARM else {}
    other = lines["baseline"].iloc[0]
    text += name_omitted("Not comparable", set(looks) - {other, *lines["level"]})
    most = f"The {SHOWN} of {len(lines)} levels that differ most, without"
    text += name_omitted(most, lines.loc[order[SHOWN:], "level"])
    with style.canvas(text, size=(6.8, 1.2 + 0.28 * len(shown))) as (figure, [axes]):
        for place, line in enumerate(shown.itertuples()):
            look = looks.get(line.level, base_look(KINDS["ilsd"]))
            axes.plot([line.low, line.high], [place, place], color=look.colour)
            axes.plot(line.value, place, **look.line(linestyle="None"))
            p = f"p = {line.p_holm:.2g}" if np.isfinite(line.p_holm) else "one seed: no interval"
            axes.annotate(p, (1.01, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7)
        axes.axvline(1 if ratios else 0, color=style.GREY, linewidth=1)
        axes.set_yticks(range(len(shown)), list(shown["level"]))
        axes.set_ylim(-0.6, len(shown) - 0.4)
        if ratios:
            style.set_log_axes(axes, f"{metric} ÷ that of {other} (below 1 is better)")
        else:
            axes.set_xlabel(f"{metric} − that of {other} (below 0 is better)")
    return figure


def main(table: pd.DataFrame, keys: Any) -> None:
    loops = parse_loops("loops", keys.loops)
    how = (keys.factor, keys.baseline, keys.metric, loops, keys.protocol)
    lines = paired_differences(table, *how)
    reason = lines["no_ratio"].iloc[0]
    shown = lines.drop(columns=["no_ratio", *(["ratio", "ratio_low", "ratio_high"] if reason else [])])
    print(shown.to_string(index=False, float_format="{:.4g}".format, na_rep="no interval"))
    if reason is not None:
        print(f"no ratios: {reason}")
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
