"""Exceptions with messages for users, and parts of these messages."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """Invalid input: one line with key, value and fix. Verbs print it and exit with `code`."""

    code = 2


class Diverged(UserError):
    """Training stopped because the loss was not finite for several steps in a row."""

    code = 1


def suggest(word: str, known: Sequence[str], what: str) -> str:
    """ "did you mean …?", or a list of all known words if none is similar."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"{what}: {', '.join(known) or 'none yet'}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
