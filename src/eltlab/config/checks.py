"""The check that one number divides another."""

from eltlab.common.errors import UserError


def check_divides(key: str, part: int, whole_key: str, whole: int, otherwise: str = "") -> None:
    """Raises UserError unless part divides whole; the message lists what does."""
    if whole % part:
        raise UserError(
            f"{key}={part} does not divide {whole_key}={whole}; choose one of {divisors(whole)}{otherwise}"
        )


def divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
