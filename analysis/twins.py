"""Which arm is the unique-layer twin of which: the one that agrees in every key that loops do not decide."""

from typing import Any

import numpy as np
import pandas as pd

from eltlab.analysis.points import UNIQUE, arm_kinds, at_trained_loops, nearly_equal
from eltlab.analysis.text_values import as_text
from eltlab.analysis.tuned_values import tuned_keys
from eltlab.config.identity import defines
from eltlab.runs.row_files import SETTINGS

# Keys that follow from the loops. The depth of a pass is compared by its column, budgets by their size.
FOLLOWS = ("seed", "loops", "unique_layers", "model.depth", "budget.images")
FACTS = {"data": "data.name", "objective": "objective.name", "width": "model.width", "depth": "model.depth"}
NAMED = 3  # keys, at most, in a reason


def find_twins(rows: pd.DataFrame) -> pd.DataFrame:
    """The twin of each arm, or the reason why it has none.

    The twin is the arm with unique layers, as many layers per pass, as many images or training FLOPs
    (within 5 %), and equal values of all other keys that define a run, except supervision.* and keys that
    were tuned for each arm. Keys present on one side only are ignored.

    rows: reported rows with their arms (`points.name_arms`). Returns one line per arm that was measured at
    its trained loops, indexed by arm: twin and no_twin, which are None for unique-layer arms.
    """
    arms = at_trained_loops(rows).drop_duplicates("arm").set_index("arm")
    unique = np.flatnonzero(arm_kinds(arms) == UNIQUE)
    keys = compared_columns(arms)
    codes = np.stack([encode(arms[column]) for column in keys], axis=1)
    found: list[tuple[str | None, str | None]] = []
    for place in range(len(arms)):
        if place in unique:
            found.append((None, None))
            continue
        differs = (codes[place] != codes[unique]) & (codes[place] >= 0) & (codes[unique] >= 0)
        budget = ~matched_budgets(arms.iloc[place], arms.iloc[unique])
        differs = np.concatenate([differs, budget.to_numpy(bool)[:, None]], axis=1)
        found.append(pick_twin(arms.iloc[place], arms.iloc[unique], differs, [*keys.values(), "budget"]))
    columns = zip(("twin", "no_twin"), zip(*found, strict=True), strict=True)
    return pd.DataFrame({name: pd.Series(list(values), arms.index, object) for name, values in columns})


def compared_columns(arms: pd.DataFrame) -> dict[str, str]:
    """The columns in which an arm and its twin must agree, with the keys to name."""
    tuned = tuned_keys(arms)
    keys = [name.removeprefix("cfg.") for name in arms if name.startswith("cfg.")]
    kept = [
        key
        for key in keys
        if defines(key) and key not in (*FOLLOWS, *tuned) and not key.startswith("supervision.")
    ]
    return {**FACTS, **{f"cfg.{key}": key for key in kept if key not in FACTS.values()}}


def encode(column: pd.Series) -> np.ndarray:
    """A number for each value, -1 for a missing one."""
    codes = pd.factorize(as_text(column))[0]
    return np.where(column.isna(), -1, codes)


def matched_budgets(arm: Any, others: pd.DataFrame) -> pd.Series:
    """Which others were trained for as many images or FLOPs as the arm, within 5 %."""
    return nearly_equal(others["images_seen"], arm["images_seen"]) | nearly_equal(
        others["train_flops_total"], arm["train_flops_total"]
    )


def pick_twin(
    arm: pd.Series, unique: pd.DataFrame, differs: np.ndarray, keys: list[str]
) -> tuple[str | None, str | None]:
    """The twin of an arm, and the reason if there is none. differs: bool [unique-layer arms, keys]."""
    if unique.empty:
        return None, "no arm has unique layers"
    matches = unique[~differs.any(axis=1)]
    if len(matches) > 1:
        # Settings are chosen for each arm, so a twin may differ in them, but an equal one is nearer.
        known = [name for name in SETTINGS if name in unique]
        alike = (matches[known].apply(as_text) == as_text(arm[known])).all(axis=1)
        matches = matches[alike] if alike.sum() == 1 else matches
    if len(matches) == 1:
        return str(matches.index[0]), None
    if matches.empty:
        nearest = differs.sum(axis=1).argmin()
        names = [key for key, differing in zip(keys, differs[nearest], strict=True) if differing]
        return None, f"{unique.index[nearest]} differs in {list_keys(names)}"
    columns = [name for name in matches if name.startswith("cfg.") and defines(name.removeprefix("cfg."))]
    columns += [name for name in SETTINGS if name in matches]
    varying = [name.removeprefix("cfg.") for name in columns if as_text(matches[name]).nunique() > 1]
    names = [name for name in varying if name != "seed"] or ["nothing but their names"]
    return None, f"{len(matches)} twins ({list_keys(list(matches.index))}) differ in {list_keys(names)}"


def list_keys(keys: list[str]) -> str:
    return ", ".join(keys[:NAMED]) + (" and more" if len(keys) > NAMED else "")
