"""The search space of a study: choices, ranges and conditions; its grid and its draws.

A space maps keys of fit to what they may be:

    loops: [1, 2, 4]                          choices
    optim.lr: {low: 1e-4, high: 1e-2, log: true}   a range (step: for whole numbers and grids of them)
    supervision:                              choices that each have a space of their own
      final: {}
      ilsd: {supervision.min_loops: [1, 2]}

The key `arm` is a label that fit does not see: it names the branches of a study.
"""

import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any, Protocol

from eltlab.common.errors import UserError

Params = dict[str, Any]  # one choice for every key
LABEL = "arm"
RANGE = {"low", "high", "log", "step"}


def is_range(values: Any) -> bool:
    return isinstance(values, Mapping) and set(values) <= RANGE and {"low", "high"} <= set(values)


def spaces_in(space: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A space, and those of its choices at every depth."""
    yield space
    for values in space.values():
        if isinstance(values, Mapping) and not is_range(values):
            for inner in values.values():
                yield from spaces_in(inner or {})


def keys_of(space: Mapping[str, Any]) -> list[str]:
    """Every key that a cell may have, conditional ones included."""
    return list(dict.fromkeys(key for inner in spaces_in(space) for key in inner))


def values_of(space: Mapping[str, Any], key: str) -> list[Any]:
    """All that a key may be in a grid, whatever the branch, in order."""
    found = (
        value
        for inner in spaces_in(space)
        if key in inner
        for cell in grid({key: inner[key]})
        for name, value in cell.items()
        if name == key
    )
    return list({repr(value): value for value in found}.values())


def steps(low: float, high: float, step: float) -> int:
    """How many values a range with a step has."""
    return int((high - low) / step + 1e-9) + 1


def decided(space: Mapping[str, Any], cell: Params) -> set[str]:
    """The keys of a cell that its branches leave one choice: {ilsd: {loops: [4]}} decides loops."""
    found: set[str] = set()
    for key, values in space.items():
        if isinstance(values, Mapping) and not is_range(values):
            inner = values[cell[key]] or {}
            found |= {name for name, options in inner.items() if len(options) == 1}
            found |= decided(inner, cell)
    return found


def check_space(space: Any, where: str) -> None:
    """Raises UserError for what is no space."""
    if not isinstance(space, Mapping) or not all(isinstance(key, str) for key in space):
        raise UserError(f"{where}: {space} is not a mapping of keys of fit to choices or ranges")
    for key, values in space.items():
        here = f"{where}.{key}"
        if is_range(values):
            _check_range(values, here)
        elif isinstance(values, Mapping):
            if not values:
                raise UserError(f"{here}: no choices; give a list, a range or choices with spaces")
            for choice, inner in values.items():
                check_space(inner or {}, f"{here}.{choice}")
        elif not isinstance(values, list) or not values:
            raise UserError(f"{here}={values}: give a list of choices, or {{low: …, high: …}}")
        elif len({repr(value) for value in values}) < len(values):
            raise UserError(f"{here}={values}: a choice is there twice")


def _check_range(values: Mapping[str, Any], where: str) -> None:
    low, high, step = values["low"], values["high"], values.get("step")
    if not (_number(low) and _number(high) and low < high):
        raise UserError(f"{where}: low={low} must be a number below high={high}, and both finite")
    if values.get("log") and (low <= 0 or step is not None):
        raise UserError(f"{where}: log: true needs low above 0 and no step")
    if step is not None and not (_number(step) and step > 0):
        raise UserError(f"{where}: step={step} must be a number above 0")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


# --- cells ----------------------------------------------------------------------------------------


def grid(space: Mapping[str, Any], where: str = "space") -> list[Params]:
    """Every combination, the first key varying slowest. Raises UserError where a range has no step."""
    cells: list[Params] = [{}]
    for key, values in space.items():
        cells = [{**cell, **more} for cell in cells for more in _expanded(key, values, where)]
    return cells


def _expanded(key: str, values: Any, where: str) -> list[Params]:
    if is_range(values):
        if values.get("step") is None:
            raise UserError(f"{where}.{key}: a grid needs choices or a range with a step")
        low, high, step = values["low"], values["high"], values["step"]
        return [{key: low + n * step} for n in range(steps(low, high, step))]
    if isinstance(values, Mapping):
        return [
            {key: choice, **inner}
            for choice, space in values.items()
            for inner in grid(space or {}, f"{where}.{key}.{choice}")
        ]
    return [{key: value} for value in values]


class Chooser(Protocol):
    """Who chooses from a space: a trial of Optuna, or dice."""

    def suggest_categorical(self, name: str, choices: Any, /) -> Any: ...

    def suggest_int(
        self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False
    ) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


class Dice:
    """Chooses at random, with no study behind it."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.random.choice(choices)

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        return round(self.suggest_float(name, low, high, step=None if log else step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if log:
            return math.exp(self.random.uniform(math.log(low), math.log(high)))
        if step is not None:
            return low + step * self.random.randrange(steps(low, high, step))
        return self.random.uniform(low, high)


def draw(space: Mapping[str, Any], trial: Chooser) -> Params:
    """The cell that a chooser takes."""
    everywhere = {
        key: {repr(inner[key]) for inner in spaces_in(space) if key in inner}
        for key in keys_of(space)
    }

    def of(inner: Mapping[str, Any], branch: str) -> Params:
        cell: Params = {}
        for key, values in inner.items():
            # Optuna knows one distribution by a name: where branches differ, each has a name of its own.
            name = key if len(everywhere[key]) == 1 else f"{key} of {branch}"
            if is_range(values):
                cell[key] = _draw_range(name, values, trial)
                continue
            # By their texts: 1 and true are equal, and not the same choice.
            choices = {repr(plain(choice)): choice for choice in values}
            if len(choices) == 1:
                [cell[key]] = choices.values()
            else:
                told = [plain(choice) for choice in values]
                cell[key] = choices[repr(trial.suggest_categorical(name, told))]
            if isinstance(values, Mapping):
                cell |= of(values[cell[key]] or {}, f"{key}={cell[key]}")
        return cell

    return of(space, "")


def plain(value: Any) -> Any:
    """A choice as Optuna takes it: what is a list or a mapping as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _draw_range(name: str, values: Mapping[str, Any], trial: Chooser) -> float:
    low, high, step = values["low"], values["high"], values.get("step")
    log = bool(values.get("log"))
    if all(type(value) is int for value in (low, high, step or 1)):
        return trial.suggest_int(name, low, high, step=step or 1, log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)
