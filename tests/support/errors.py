"""Asserts that a call fails as a user's mistake should."""

import pytest

from eltlab.common.errors import UserError


def fails(function, *arguments: object) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message
