"""The check that one number divides another."""

from typing import Any

from eltlab.common.errors import UserError


def check_divides(key: str, part: int, whole_key: str, whole: int, otherwise: str = "") -> None:
    """Raises UserError unless part divides whole; the message lists what does."""
    if whole % part:
        raise UserError(
            f"{key}={part} does not divide {whole_key}={whole}; choose one of {divisors(whole)}{otherwise}"
        )


def divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def at_least(config: Any, low: float, keys: str) -> None:
    for key in keys.split():
        value = getattr(config, key)
        if value is not None and value < low:
            raise UserError(f"{key}={value}: must be at least {low}")
