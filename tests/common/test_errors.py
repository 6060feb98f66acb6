"""The messages of errors: what was meant, and one line of any exception."""

import pytest

from eltlab.common.errors import Diverged, UserError, first_line, suggest


@pytest.mark.parametrize(
    ("word", "known", "message"),
    [
        ("loop", ["model", "loops"], "did you mean loops?"),
        ("taesd", ["teasd", "taes"], "did you mean taes?"),
        ("colour", ["loops", "model"], "keys: loops, model"),
        ("colour", [], "keys: none yet"),
    ],
)
def test_the_nearest_word_is_suggested_or_all_are_listed(word, known, message):
    assert suggest(word, known, "keys") == message


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError(""), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_any_exception_gives_one_line(error, line):
    assert first_line(error) == line


def test_invalid_input_and_a_diverged_run_have_different_exit_codes():
    assert (UserError("x").code, Diverged("x").code) == (2, 1)
    assert isinstance(Diverged("x"), UserError)  # so a verb prints it as one line
