"""The one exception that users see."""


class UserError(Exception):
    """A mistake that the user can mend: one line that names the key, its value and the mend.

    The verbs print it and leave with exit code 2, without a traceback.
    """

    code = 2


class Diverged(UserError):
    """Training stopped because the loss was not finite several steps in a row; exit code 1."""

    code = 1
