"""The search space of a study: choices, ranges and conditions; its grid, its draws, its constraints.

A space maps keys of fit to what they may be:

    loops: [1, 2, 4]                          choices
    optim.lr: {low: 1e-4, high: 1e-2, log: true}   a range (step: for whole numbers and grids of them)
    supervision:                              choices that each have a space of their own
      final: {}
      ilsd: {supervision.min_loops: [1, 2]}

The key `arm` is a label that fit does not see: it names the branches of a study.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from eltlab.errors import UserError, nearest

if TYPE_CHECKING:
    from optuna import Trial

Cell = dict[str, Any]  # one choice for every key
LABEL = "arm"
RANGE = {"low", "high", "log", "step"}


def is_range(values: Any) -> bool:
    return isinstance(values, Mapping) and set(values) <= RANGE and {"low", "high"} <= set(values)


def keys_of(space: Mapping[str, Any]) -> list[str]:
    """Every key that a cell may have, conditional ones included."""
    found = list(space)
    for values in space.values():
        if isinstance(values, Mapping) and not is_range(values):
            found += [key for inner in values.values() for key in keys_of(inner or {})]
    return list(dict.fromkeys(found))


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
    numbers = all(type(value) in (int, float) for value in (low, high))
    if not numbers or low >= high:
        raise UserError(f"{where}: low={low} must be a number below high={high}")
    if values.get("log") and (low <= 0 or step is not None):
        raise UserError(f"{where}: log: true needs low above 0 and no step")
    if step is not None and (type(step) not in (int, float) or step <= 0):
        raise UserError(f"{where}: step={step} must be a number above 0")


# --- cells ----------------------------------------------------------------------------------------


def grid(space: Mapping[str, Any], where: str = "space") -> list[Cell]:
    """Every combination, the first key varying slowest. Raises UserError where a range has no step."""
    cells: list[Cell] = [{}]
    for key, values in space.items():
        cells = [{**cell, **more} for cell in cells for more in _expanded(key, values, where)]
    return cells


def _expanded(key: str, values: Any, where: str) -> list[Cell]:
    if is_range(values):
        if values.get("step") is None:
            raise UserError(f"{where}.{key}: a grid needs choices or a range with a step")
        count = int((values["high"] - values["low"]) / values["step"] + 1e-9) + 1
        return [{key: values["low"] + n * values["step"]} for n in range(count)]
    if isinstance(values, Mapping):
        return [
            {key: choice, **inner}
            for choice, space in values.items()
            for inner in grid(space or {}, f"{where}.{key}.{choice}")
        ]
    return [{key: value} for value in values]


def draw(space: Mapping[str, Any], trial: "Trial") -> Cell:
    """The cell that the study's sampler suggests to a trial."""
    cell: Cell = {}
    for key, values in space.items():
        if is_range(values):
            cell[key] = _draw_range(key, values, trial)
        elif isinstance(values, Mapping):
            cell[key] = trial.suggest_categorical(key, list(values))
            cell |= draw(values[cell[key]] or {}, trial)
        else:
            cell[key] = trial.suggest_categorical(key, values)
    return cell


def _draw_range(key: str, values: Mapping[str, Any], trial: "Trial") -> float:
    low, high, step = values["low"], values["high"], values.get("step")
    log = bool(values.get("log"))
    if all(type(value) is int for value in (low, high, step or 1)):
        return trial.suggest_int(key, low, high, step=step or 1, log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


# --- constraints ----------------------------------------------------------------------------------

RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "divides": lambda part, whole: whole % part == 0,
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def holds(rule: str, values: Mapping[str, Any]) -> bool:
    """Whether a constraint such as "loops divides model.depth" or "unique_layers * loops <= 12" holds.

    values: what the keys in it stand for. Raises UserError for what is no constraint.
    """
    found = re.fullmatch(rf"(.+?)\s*(\bdivides\b|{'|'.join(list(RELATIONS)[1:])})\s*(.+)", rule)
    if found is None:
        raise UserError(f"where: {rule!r} has no relation; choose one of {', '.join(RELATIONS)}")
    left, relation, right = found.groups()
    try:
        return bool(RELATIONS[relation](_value(left, rule, values), _value(right, rule, values)))
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"where: {rule!r}: {error}") from error


def _value(text: str, rule: str, values: Mapping[str, Any]) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"where: {rule!r}: {text.strip()!r} is not a sum or product") from error

    def walk(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as value):
                return value
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](walk(left), walk(right))
            case ast.Name() | ast.Attribute():
                key = ast.unparse(node)
                if key not in values:
                    raise UserError(f"where: {rule!r}: {nearest(key, list(values), 'keys')}")
                return values[key]
        raise UserError(f"where: {rule!r}: {ast.unparse(node)!r} is not a sum or product of keys")

    return walk(tree)
