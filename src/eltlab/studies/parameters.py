"""The cells of a grid as Optuna's parameters: its pictures and tables are made from these.

Optuna keeps the kind and the choices of a name for ever, and a grid may grow: a name here always stands
for numbers, whose bounds may change, or for one set of choices. All numbers are floats, so that whole
ones may be joined by others.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna

from eltlab.common.hashing import digest
from eltlab.studies.space import Params, plain, values_of


def parameters(
    study: optuna.Study, space: Mapping[str, Any], cell: Params
) -> dict[str, tuple[Any, list[Any]]]:
    """The value and the choices of each parameter by its name, for a trial that is enqueued."""
    first = dict(study.user_attrs.get("choices", {}))
    named = {}
    for key, value in cell.items():
        choices = [plain(each) for each in values_of(space, key)]
        named[name_of(key, first.setdefault(key, choices), choices)] = (plain(value), choices)
    if first != study.user_attrs.get("choices"):
        study.set_user_attr("choices", first)
    return named


def name_of(key: str, first: list[Any], choices: list[Any]) -> str:
    """The key, for the choices that it had first; others have a name of their own."""
    if numeric(choices):
        return key if numeric(first) else f"{key} (numbers)"
    if repr(choices) == repr(first):  # 1 and true are equal, and not the same
        return key
    return f"{key} ({len(choices)} choices, {digest(choices)[:4]})"


def register(trial: optuna.Trial) -> None:
    """Has Optuna take the parameters that a trial was enqueued with."""
    for name, choices in trial.user_attrs["choices"].items():
        with suppress(ValueError):  # Optuna refuses it: a picture lacks a value, and the trial runs
            if numeric(choices):
                trial.suggest_float(name, min(choices), max(choices))
            else:
                trial.suggest_categorical(name, choices)


def numeric(choices: list[Any]) -> bool:
    return all(type(each) in (int, float) for each in choices)
