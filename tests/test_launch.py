"""The launcher of one process per device."""

from eltlab.launch import exit_code


def test_the_exit_code_is_that_of_the_process_that_failed() -> None:
    assert exit_code([-15, 2]) == 2 and exit_code([-9]) == 137
