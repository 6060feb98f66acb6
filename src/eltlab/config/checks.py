"""What rules are made of: the set values behind some keys, and a message that names key, value and mend."""

from typing import Any

from eltlab.common.errors import UserError
from eltlab.config.flat import flatten


def not_empty(config: Any) -> None:
    for key, value in flatten(config).items():
        if value == "":
            raise UserError(f"{key}=: empty; give a value, or leave it out")


def at_least(config: Any, low: float, keys: str) -> None:
    for key, value in values_of(config, keys):
        if value < low:
            raise UserError(f"{key}={value}: must be at least {low}")


def within(config: Any, low: float, high: float, keys: str, open_end: bool = False) -> None:
    for key, value in values_of(config, keys):
        if not low <= value <= high or (open_end and value == high):
            raise UserError(f"{key}={value}: must lie in [{low}, {high}{')' if open_end else ']'}")


def one_of(config: Any, key: str, options: tuple[Any, ...]) -> None:
    for _, value in values_of(config, key):
        if value not in options:
            raise UserError(f"{key}={value}: choose one of {', '.join(map(str, options))}")


def values_of(config: Any, keys: str) -> list[tuple[str, Any]]:
    """The set values behind space-separated dotted keys."""
    found = []
    for key in keys.split():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None:
            found.append((key, value))
    return found


def divides(key: str, part: int, whole_key: str, whole: int, otherwise: str = "") -> None:
    if whole % part:
        divisors = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise UserError(
            f"{key}={part} does not divide {whole_key}={whole}; choose one of {divisors}{otherwise}"
        )
