"""How a verb ends: its exit code, and the one line that says why."""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from support.command_line import typed_in
from support.commands import appended_file, fork, read

from eltlab import fit
from eltlab.common.command import is_key_value, run_command
from eltlab.common.errors import Diverged, UserError
from eltlab.common.processes import Fork
from eltlab.common.signals import Stopped


def verb(main) -> SimpleNamespace:
    return SimpleNamespace(main=main, usage=lambda arguments: f"help for {arguments}")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("loops=0:\nmust be at least 1"), 2, "error: loops=0:\\nmust be at least 1\n"),
        (Diverged("the loss is not finite"), 1, "error: the loss is not finite\n"),
        (FileNotFoundError(2, "No such file", "a.yaml"), 2, "error: a.yaml: No such file\n"),
        (OSError("the disk is full"), 2, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "stopped; the same command resumes from the last checkpoint\n"),
        (
            Stopped(signal.SIGTERM, " at step 8"),
            143,
            "stopped by SIGTERM at step 8; the same command resumes from the last checkpoint\n",
        ),
    ],
)
def test_every_end_has_its_code_and_one_line(monkeypatch, capsys, error, code, message) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert typed_in(verb(main), [], monkeypatch) == code
    assert capsys.readouterr() == ("", message)


def test_a_bug_keeps_its_traceback(monkeypatch) -> None:
    def main(arguments: list[str]) -> None:
        raise KeyError("width")

    with pytest.raises(KeyError, match="width"):
        typed_in(verb(main), [], monkeypatch)


def test_arguments_are_passed_on_or_explained(monkeypatch, capsys) -> None:
    calls: list[list[str]] = []
    assert typed_in(verb(calls.append), ["loops=2", "seed=1"], monkeypatch) == 0
    assert typed_in(verb(calls.append), ["loops=2", "-h"], monkeypatch) == 0
    assert capsys.readouterr() == ("help for ['loops=2']\n", "")
    assert typed_in(verb(calls.append), ["--storage=postgresql://me:secret@host/db"], monkeypatch) == 2
    printed = capsys.readouterr()
    assert "secret" not in printed.err and "only key=value and --help" in printed.err
    assert calls == [["loops=2", "seed=1"]]


def test_a_mistake_before_help_is_one_line(monkeypatch, capsys) -> None:
    assert typed_in(fit, ["objectve=flow", "--help"], monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: unknown key objectve=flow: did you mean objective?\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("loops=2", True), ("a=b/c", True), ("loops", False), ("runs/a=b", False), ("/loops=2/run", False)],
)
def test_a_path_is_no_key_and_value(text, expected) -> None:
    assert is_key_value(text) == expected


@pytest.mark.integration
def test_a_reader_that_stops_early_is_no_error(tmp_path) -> None:
    """Such as `python -m eltlab.plan | head -1`."""

    def main(arguments: list[str]) -> None:
        print("a line", flush=True)

    def work() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        sys.argv, sys.stdout = ["plan"], os.fdopen(writer, "w")
        run_command(main, lambda arguments: "")

    stderr = appended_file()
    child = Fork(fork(work, {2: stderr}, session=True))
    while child.poll() is None:
        time.sleep(0.01)
    assert (child.poll(), read(stderr)) == (1, "")
