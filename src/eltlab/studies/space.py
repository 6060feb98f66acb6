"""The search space of a study: choices, ranges, conditions and constraints; its grid, and draws from it.

A space maps keys of fit to their possible values:

    loops: [1, 2, 4]                          choices
    optim.lr: {low: 1e-4, high: 1e-2, log: true}   a range (with step: whole numbers, or a grid)
    supervision:                              choices, each with a space of its own
      final: {}
      ilsd: {supervision.min_loops: [1, 2]}

The keys `arm` and `measured` are labels that fit does not see: they name the branches of a study.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from eltlab.common.errors import UserError, suggest

Params = dict[str, Any]  # the parameters of a trial: a value for each key of the space
LABELS = ("arm", "measured")
RANGE = {"low", "high", "log", "step"}
# Keys of objective and data that leave the definition of the held-out loss as it is. The prediction does: the
# loss of diffusion is the error of x, whatever the network predicts.
SAME_LOSS = (
    *("objective.label_dropout", "objective.prediction"),
    *("data.workers", "data.in_memory", "data.flip"),
)


def is_range(values: Any) -> bool:
    return isinstance(values, Mapping) and set(values) <= RANGE and {"low", "high"} <= set(values)


def spaces_in(space: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A space and the spaces of its choices, at every depth."""
    yield space
    for values in space.values():
        if isinstance(values, Mapping) and not is_range(values):
            for inner in values.values():
                yield from spaces_in(inner or {})


def keys_of(space: Mapping[str, Any]) -> list[str]:
    """Every key that parameters may have, including conditional ones."""
    return list(dict.fromkeys(key for inner in spaces_in(space) for key in inner))


def changes_loss(key: str) -> bool:
    """Whether runs that differ in a key of fit have held-out losses that cannot be compared, because their
    objectives or the examples that they are measured on differ."""
    return key.partition(".")[0] in ("experiment", "objective", "data") and key not in SAME_LOSS


def values_of(space: Mapping[str, Any], key: str) -> list[Any]:
    """The values of a key in a grid, over all branches, in order."""
    found = (params[key] for inner in spaces_in(space) if key in inner for params in grid({key: inner[key]}))
    return list({repr(value): value for value in found}.values())  # by text: 1 and true are equal


def count_steps(low: float, high: float, step: float) -> int:
    """How many values a range with a step has."""
    return int((high - low) / step + 1e-9) + 1


def fixed_keys(space: Mapping[str, Any], params: Params) -> set[str]:
    """The keys that have one choice in their branch: in {ilsd: {loops: [4]}} ilsd fixes loops."""
    found: set[str] = set()
    for key, values in space.items():
        if isinstance(values, Mapping) and not is_range(values):
            inner = values[params[key]] or {}
            found |= {name for name, options in inner.items() if len(options) == 1}
            found |= fixed_keys(inner, params)
    return found


def check_space(space: Any, where: str) -> None:
    """Raises UserError if this is not a valid space. where: its place in the study file."""
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
            raise UserError(f"{here}={values}: a choice is listed twice")


def _check_range(values: Mapping[str, Any], where: str) -> None:
    low, high, step = values["low"], values["high"], values.get("step")
    if not (_number(low) and _number(high) and low < high):
        raise UserError(f"{where}: low={low} must be a number below high={high}, and both finite")
    if values.get("log") and (low <= 0 or step is not None):
        raise UserError(f"{where}: log: true requires low above 0 and no step")
    if step is not None and not (_number(step) and step > 0):
        raise UserError(f"{where}: step={step} must be a number above 0")


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def grid(space: Mapping[str, Any], where: str = "space") -> list[Params]:
    """Every combination; the first key varies slowest. Raises UserError if a range has no step."""
    combinations: list[Params] = [{}]
    for key, values in space.items():
        expanded = _expand(key, values, where)
        combinations = [{**params, **more} for params in combinations for more in expanded]
    return combinations


def _expand(key: str, values: Any, where: str) -> list[Params]:
    if is_range(values):
        if values.get("step") is None:
            raise UserError(f"{where}.{key}: a grid requires choices or a range with a step")
        low, high, step = values["low"], values["high"], values["step"]
        return [{key: low + n * step} for n in range(count_steps(low, high, step))]
    if isinstance(values, Mapping):
        return [
            {key: choice, **inner}
            for choice, space in values.items()
            for inner in grid(space or {}, f"{where}.{key}.{choice}")
        ]
    return [{key: value} for value in values]


class Dice:
    """Suggests random values, as a trial of Optuna does, without a study."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.random.choice(choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return round(self.suggest_float(name, low, high, step=None if log else step, log=log))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        if log:
            return math.exp(self.random.uniform(math.log(low), math.log(high)))
        if step is not None:
            return low + step * self.random.randrange(count_steps(low, high, step))
        return self.random.uniform(low, high)


def draw(space: Mapping[str, Any], trial: Any) -> Params:
    """Draws parameters from a space. trial: a trial of Optuna, or Dice."""
    texts = {key: {repr(inner[key]) for inner in spaces_in(space) if key in inner} for key in keys_of(space)}

    def draw_branch(inner: Mapping[str, Any], branch: str) -> Params:
        params: Params = {}
        for key, values in inner.items():
            # Optuna allows one distribution per name. If branches differ, each has a separate name.
            name = key if len(texts[key]) == 1 else f"{key} of {branch}"
            if is_range(values):
                params[key] = _draw_range(name, values, trial)
                continue
            # By their texts: 1 and true are equal, but not the same choice.
            choices = {repr(plain(choice)): choice for choice in values}
            if len(choices) == 1:
                [params[key]] = choices.values()
            else:
                params[key] = choices[repr(trial.suggest_categorical(name, [*map(plain, values)]))]
            if isinstance(values, Mapping):
                params |= draw_branch(values[params[key]] or {}, f"{key}={params[key]}")
        return params

    return draw_branch(space, "")


def plain(value: Any) -> Any:
    """A choice as Optuna accepts it: lists and mappings become text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _draw_range(name: str, values: Mapping[str, Any], trial: Any) -> float:
    low, high, step = values["low"], values["high"], values.get("step")
    log = bool(values.get("log"))
    if all(type(value) is int for value in (low, high, step or 1)):
        return trial.suggest_int(name, low, high, step=step or 1, log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


# --- constraints on the parameters, e.g. "loops divides model.depth" ------------------------------

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

    values: those of the keys that the constraint names. Raises UserError if the rule is not a constraint.
    """
    left, relation, right = _split(rule)
    try:
        return bool(RELATIONS[relation](_value(left, rule, values), _value(right, rule, values)))
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"where: {rule!r}: {error}") from error


def keys_in(rule: str) -> list[str]:
    """The keys that a constraint names. Raises UserError if the rule is not a constraint."""

    def walk(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Name | ast.Attribute):  # "model.depth" parses as an attribute
            return [ast.unparse(node)]
        return [key for child in ast.iter_child_nodes(node) for key in walk(child)]

    left, _, right = _split(rule)
    return [*walk(left), *walk(right)]


def _split(rule: str) -> tuple[ast.expr, str, ast.expr]:
    """The left side of a constraint, its relation and its right side."""
    found = re.fullmatch(rf"(.+?)\s*(\bdivides\b|{'|'.join(list(RELATIONS)[1:])})\s*(.+)", rule)
    if found is None:
        raise UserError(f"where: {rule!r} has no relation; choose one of {', '.join(RELATIONS)}")
    left, relation, right = found.groups()
    return _parse(left, rule), relation, _parse(right, rule)


def _parse(text: str, rule: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise UserError(f"where: {rule!r}: {text.strip()!r} is not a sum or product") from error


def _value(tree: ast.expr, rule: str, values: Mapping[str, Any]) -> Any:
    def walk(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int() | float() | str() as value):
                return value
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](walk(left), walk(right))
            case ast.Name() | ast.Attribute():
                key = ast.unparse(node)
                if key not in values:
                    raise UserError(f"where: {rule!r}: {suggest(key, list(values), 'keys')}")
                return values[key]
        raise UserError(f"where: {rule!r}: {ast.unparse(node)!r} is not a sum or product of keys")

    return walk(tree)
