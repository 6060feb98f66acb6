"""The exceptions that users see, and the hint they carry."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A mistake that the user can mend: one line that names the key, its value and the mend.

    The verbs print it and leave with exit code 2, without a traceback.
    """

    code = 2


class Diverged(UserError):
    """Training stopped because the loss was not finite several steps in a row; exit code 1."""

    code = 1


def suggest(word: str, known: Sequence[str], what: str) -> str:
    """ "did you mean …?", or all that is known where nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"{what}: {', '.join(known) or 'none yet'}"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
