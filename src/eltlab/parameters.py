"""The cells of a grid as Optuna's parameters: its pictures and tables are made from these.

Optuna keeps the choices of a name for ever, and a grid may grow: grown choices have a name of their own.
"""

from collections.abc import Mapping
from typing import Any

import optuna

from eltlab.space import Cell, values_of


def parameters(
    study: optuna.Study, space: Mapping[str, Any], cell: Cell
) -> dict[str, tuple[Any, list[Any]]]:
    """The value and the choices of each parameter by its name, for a trial that is enqueued."""
    first = dict(study.user_attrs.get("choices", {}))
    named = {}
    for key, value in cell.items():
        choices = [plain(each) for each in values_of(space, key)]
        same = first.setdefault(key, choices) == choices or numeric(choices)
        named[key if same else f"{key} ({len(choices)} choices)"] = (plain(value), choices)
    if first != study.user_attrs.get("choices"):
        study.set_user_attr("choices", first)
    return named


def register(trial: optuna.Trial) -> None:
    """Has Optuna take the parameters that a trial was enqueued with."""
    for name, choices in trial.user_attrs["choices"].items():
        if not numeric(choices):
            trial.suggest_categorical(name, choices)
        elif all(type(each) is int for each in choices):
            trial.suggest_int(name, min(choices), max(choices))
        else:
            trial.suggest_float(name, min(choices), max(choices))


def plain(value: Any) -> Any:
    """A choice as Optuna takes it: what is a list or a mapping as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def numeric(choices: list[Any]) -> bool:
    return all(type(each) in (int, float) for each in choices)
