"""Settings of measuring that are chosen after training: on other samples than those that are reported.

One run can be measured at several values of guidance, sampling steps or EMA length (SETTINGS). If the value
that is reported were the best of the reported ones, noise would choose it, and an arm with more values tried
would look better. `choose_settings` therefore chooses each arm's value by rows that are not reported: other
sample seeds, against the training split.
"""

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from eltlab.analysis.comparable_rows import comparable, latest
from eltlab.analysis.metrics import HELD_OUT, SAMPLED, measured
from eltlab.analysis.text_values import UNSET, as_text
from eltlab.common.errors import UserError, suggest
from eltlab.runs.row_files import SETTINGS

LISTED = 6  # arms, at most, whose settings a caption names


class ChosenSetting(NamedTuple):
    """The settings chosen for one arm: column → value, and column → all values that were tried."""

    name: str
    chosen: dict[str, str]
    tried: dict[str, list[str]]
    metric: str
    seeds: list[int]  # sample seeds of the rows that it was chosen by


def reported_rows(table: pd.DataFrame, protocol: str | None = None) -> pd.DataFrame:
    """The rows that figures and tables show: `comparable` ones, each arm at one setting."""
    return choose_settings(table, protocol)[0]


def choose_settings(
    table: pd.DataFrame, protocol: str | None = None
) -> tuple[pd.DataFrame, list[ChosenSetting]]:
    """The reported rows, of one protocol and one setting per arm, and what was chosen for each arm.

    Reported are the rows of the protocol; without one, those against the test split if every arm has some,
    else all. An arm measured at several settings gets the one with the least unbiased distance at its trained
    loops, averaged over the rows against the training split whose sample seeds are not reported. If reported
    rows are themselves against the training split, they are those whose sample seed is the run's seed (the
    default of evaluate).

    Raises UserError if there is nothing to choose by, if the chosen setting is not reported, or if the rows
    cannot be compared (`comparable`).
    """
    rows = latest(table[table["kind"] == "eval"])
    reported = select_reported(rows, protocol)
    if reported.empty:
        return comparable(table, protocol), []  # which says what is missing
    varying = varying_settings(rows)
    if not varying:
        return comparable(reported, protocol), []
    texts = rows[varying].apply(as_text)
    setting = pd.Series(list(map(tuple, texts.to_numpy())), index=rows.index, dtype=object)
    kept, choices = [], []
    for name, group in rows.groupby("name", sort=False):
        own = reported[reported["name"] == name]
        if setting[group.index].nunique() > 1 and len(own):
            own, choice = choose_for_arm(str(name), group, own, setting, varying)
            choices += [choice] if choice else []
        kept.append(own.index)
    keep = reported.index.isin([index for indices in kept for index in indices])
    return comparable(reported[keep], protocol), choices


def select_reported(rows: pd.DataFrame, protocol: str | None) -> pd.DataFrame:
    """The rows of the protocol; without one, those of the test split if every arm has some, else all."""
    if protocol is not None:
        return rows[rows["protocol"] == protocol]
    test = rows[splits(rows) == "test"]
    return test if set(test["name"]) == set(rows["name"]) else rows


def splits(rows: pd.DataFrame) -> pd.Series:
    """The split that each row was measured against. Rows from before the column existed used train."""
    if "split" not in rows:
        return pd.Series("train", index=rows.index)
    return rows["split"].astype(object).fillna("train")


def varying_settings(rows: pd.DataFrame) -> list[str]:
    """The columns of SETTINGS in which the rows differ."""
    return [name for name in SETTINGS if name in rows and varies(rows[name])]


def varies(column: pd.Series) -> bool:
    # Text is slow to make, and only needed for values of mixed types and lists.
    return bool((column if column.dtype.kind in "iuf" else as_text(column)).nunique(dropna=False) > 1)


def choose_for_arm(
    name: str, group: pd.DataFrame, own: pd.DataFrame, setting: pd.Series, varying: list[str]
) -> tuple[pd.DataFrame, ChosenSetting | None]:
    """The reported rows of an arm at its chosen setting, and the choice (None if there was none to make).

    group: all rows of the arm; own: those that may be reported.
    """
    if (splits(own) == "train").all():
        own = own[own["sample_seed"] == own["seed"]]
    others = group[(splits(group) == "train") & ~group["sample_seed"].isin(own["sample_seed"])]
    if setting[others.index].nunique() < 2:
        if setting[own.index].nunique() > 1:
            raise UserError(say_what_to_run(name, group, varying))
        return own, None
    metric, best = least_distance(name, others, setting)
    values = dict(zip(varying, best, strict=True))
    chosen = {column: value for column, value in values.items() if as_text(others[column]).nunique() > 1}
    tried = {column: list(as_text(others[column]).unique()) for column in chosen}
    kept = own[setting[own.index] == best]
    if kept.empty:
        keys = " ".join(f"{SETTINGS[column]}={value}" for column, value in values.items() if value != UNSET)
        split = splits(own).iloc[0] if len(own) else "test"
        raise UserError(
            f"{name}: {describe(chosen)} was chosen by {metric}, but no row reports it; run python -m "
            f"eltlab.evaluate run=DIR {keys} metrics.split={split}"
        )
    return kept, ChosenSetting(name, chosen, tried, metric, sorted(others["sample_seed"].unique().tolist()))


def least_distance(name: str, rows: pd.DataFrame, setting: pd.Series) -> tuple[str, tuple[str, ...]]:
    """The unbiased distance that the rows have, and the setting of an arm at which its mean is least.

    All settings are compared over the same runs, sample seeds and protocols, at the trained loops.
    """
    found = measured(rows, SAMPLED)
    if not found:
        raise UserError(
            f"{name}: its settings can only be chosen by an unbiased distance ({', '.join(SAMPLED)}), which "
            "the rows against the training split do not have; measure them again with this version"
        )
    metric = found[0]
    own = rows[(rows["loop_schedule"] == "constant") & (rows["loops"] == rows["loops_train"])]
    table = own.assign(setting=setting[own.index]).pivot_table(
        metric, ["protocol", "run", "sample_seed"], "setting", aggfunc="mean"
    )
    means = table.dropna().mean()
    if means.isna().all():
        raise UserError(
            f"{name}: no run was measured at all settings with one sample seed at its trained loops, so none "
            "can be chosen; run python -m eltlab.evaluate with the settings in one list"
        )
    return metric, means.idxmin()


def say_what_to_run(name: str, group: pd.DataFrame, varying: list[str]) -> str:
    found = {column: as_text(group[column]).unique() for column in varying}
    differing = {column: values for column, values in found.items() if len(values) > 1}
    lists = " ".join(f"'{SETTINGS[column]}=[{','.join(values)}]'" for column, values in differing.items())
    several = " and ".join(differing)
    column, values = next(iter(differing.items()))
    return (
        f"{name} was measured at several values of {several}; choose by other samples: python -m "
        f"eltlab.evaluate run=DIR {lists} seed={int(group['sample_seed'].max()) + 1} metrics.split=train; or "
        f"select one with {column}={values[0]}"
    )


# --- equal settings ---------------------------------------------------------------------------------


def settings_of(metric: str | None) -> tuple[str, ...]:
    """The settings a metric depends on. The held-out loss draws no samples, but is that of an average."""
    return ("ema_length",) if metric == HELD_OUT else tuple(SETTINGS)


def arm_settings(rows: pd.DataFrame, choices: list[ChosenSetting], metric: str) -> pd.DataFrame:
    """Each arm's settings of the metric in which rows differ, as text; a chosen one as its candidates.

    rows, choices: from `choose_settings`, rows with their arms (`points.name_arms`). Returns a line per arm.
    """
    arms = rows[rows[metric].notna()].drop_duplicates("arm").set_index("arm")
    columns = [column for column in varying_settings(rows) if column in settings_of(metric)]
    texts = pd.DataFrame({column: as_text(arms[column]) for column in columns}, index=arms.index)
    for each in choices:
        for column in (column for column in each.tried if column in texts):
            candidates = f"chosen by {each.metric} from {', '.join(sorted(each.tried[column]))}"
            texts.loc[arms["name"] == each.name, column] = candidates
    return texts


def why_unmatched(settings: pd.DataFrame, arms: Iterable[str]) -> str | None:
    """Why these arms have no ratio: their settings are neither equal nor chosen from the same candidates.

    settings: from `arm_settings`. None if they are.
    """
    own = settings.loc[list(arms)]
    differing = [column for column in own if own[column].nunique() > 1]
    return f"settings differ and were not chosen: {', '.join(differing)}" if differing else None


# --- in words -------------------------------------------------------------------------------------


def describe(values: dict[str, str]) -> str:
    return ", ".join(f"{column.replace('_', ' ')} {value}" for column, value in values.items())


def describe_settings(rows: pd.DataFrame, choices: list[ChosenSetting], metric: str | None = None) -> str:
    """The settings of reported rows, and how they were chosen; only those that the metric depends on.

    rows: with their arms (`points.name_arms`).
    """
    known = settings_of(metric)
    choices = [each for each in choices if set(each.chosen) & set(known)]
    varying = [column for column in varying_settings(rows) if column in known]
    named = ["steps", "guidance", *(column for each in choices for column in each.chosen)]
    shared = [column for column in dict.fromkeys(named) if column not in varying and column in known]
    first = as_text(rows[shared].iloc[0].astype(object))
    parts = [
        f"{first[column]} steps" if column == "steps" else describe({column: first[column]})
        for column in shared
    ]
    if varying:
        arms = rows.drop_duplicates("arm").set_index("arm")[varying].apply(as_text)
        parts += [f"{arm} at {describe(dict(line))}" for arm, line in arms.head(LISTED).iterrows()]
        parts += [f"{len(arms) - LISTED} more arms"] if len(arms) > LISTED else []
    return ", ".join(parts) + describe_choices(rows, choices)


def describe_choices(rows: pd.DataFrame, choices: list[ChosenSetting]) -> str:
    """By what the settings were chosen, and from which values: arms with the same candidates share a part."""
    if not choices:
        return ""
    arms = rows.drop_duplicates("name").set_index("name")["arm"]
    groups: dict[str, list[str]] = {}
    for each in choices:
        values = " and ".join(
            f"{name.replace('_', ' ')} {', '.join(tried)}" for name, tried in each.tried.items()
        )
        groups.setdefault(values, []).append(arms[each.name])
    parts = []
    for values, members in groups.items():
        more = f" and {len(members) - LISTED} more" if len(members) > LISTED else ""
        who = "each arm" if len(members) == len(arms) else ", ".join(members[:LISTED]) + more
        parts.append(f"for {who} from {values}")
    metrics = " or ".join(dict.fromkeys(each.metric for each in choices))
    seeds = ", ".join(map(str, sorted({seed for each in choices for seed in each.seeds})))
    return (
        f" (chosen by {metrics} against the training split with sample seed{'s' * (',' in seeds)} {seeds}, "
        f"{'; '.join(parts)})"
    )


# --- for the commands -----------------------------------------------------------------------------


def select_setting(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows measured at this setting, and those of other kinds. Raises UserError if there are none."""
    measured_rows = table["kind"] == "eval"
    texts = as_text(table[column]) if column in table else pd.Series(UNSET, index=table.index)
    if not (measured_rows & (texts == value)).any():
        known = list(texts[measured_rows].unique())
        raise UserError(f"{column}={value}: {suggest(value, known, 'values')}")
    return table[~measured_rows | (texts == value)]


def settings_as_arms(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each setting as an arm of its own, named after it: nothing is chosen."""
    varying = varying_settings(table[table["kind"] == "eval"])
    if not varying:
        return table
    texts = table[varying].apply(as_text)
    suffix = texts.apply(lambda line: " " + describe(dict(line)), axis=1)
    return table.assign(name=table["name"].where(table["kind"] != "eval", table["name"] + suffix))
