"""Constraints on the parameters of a trial: "loops divides model.depth"."""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from eltlab.common.errors import UserError, suggest

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

    values: of the keys that the constraint names. Raises UserError if the rule is no constraint.
    """
    left, relation, right = _split(rule)
    try:
        return bool(RELATIONS[relation](_value(left, rule, values), _value(right, rule, values)))
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"where: {rule!r}: {error}") from error


def keys_in(rule: str) -> list[str]:
    """The keys that a constraint names. Raises UserError if the rule is no constraint."""

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
