"""The parameters of a grid under the names that Optuna knows them by, for its plots and tables.

Optuna fixes the kind and the choices of a name for ever, but a grid may grow. So a name stands either for
numbers, whose bounds may change, or for one set of choices. All numbers are floats, because fractions may be
added to whole numbers later.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna

from eltlab.common.cache import digest
from eltlab.studies.space import Params, plain, values_of


def name_parameters(
    record: optuna.Study, space: Mapping[str, Any], params: Params
) -> dict[str, tuple[Any, list[Any]]]:
    """The value and the choices of each parameter by its name, for a trial to enqueue."""
    first = dict(record.user_attrs.get("choices", {}))  # that each key had
    named = {}
    for key, value in params.items():
        choices = [plain(each) for each in values_of(space, key)]
        named[name_of(key, first.setdefault(key, choices), choices)] = (plain(value), choices)
    if first != record.user_attrs.get("choices"):
        record.set_user_attr("choices", first)
    return named


def name_of(key: str, first: list[Any], choices: list[Any]) -> str:
    """The key itself for the choices that it had first; a name of their own for other choices."""
    if are_numbers(choices):
        return key if are_numbers(first) else f"{key} (numbers)"
    if repr(choices) == repr(first):  # not ==: 1 and true are equal, but not the same choice
        return key
    return f"{key} ({len(choices)} choices, {digest(choices)[:4]})"


def suggest_enqueued(trial: optuna.Trial) -> None:
    """Has Optuna take the parameters that a trial was enqueued with."""
    for name, choices in trial.user_attrs["choices"].items():
        # If Optuna refuses a value, a plot lacks it; the trial runs all the same.
        with suppress(ValueError):
            if are_numbers(choices):
                trial.suggest_float(name, min(choices), max(choices))
            else:
                trial.suggest_categorical(name, choices)


def are_numbers(choices: list[Any]) -> bool:
    return all(type(each) in (int, float) for each in choices)  # bool is neither
