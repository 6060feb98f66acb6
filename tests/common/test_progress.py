"""The progress bar on a terminal, and the plain lines without one."""

import os
import pty
import sys

from eltlab.common import progress


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with open(master, "rb", buffering=0) as reader, open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.Bar("train", 100, 20) as bar:
            bar.update(60, "loss 0.123")
        monkeypatch.undo()
        os.set_blocking(master, False)
        shown = reader.readall().decode()
    assert "60/100" in shown and "images/s" in shown and "left" in shown and "loss 0.123" in shown


def test_without_a_terminal_a_plain_line_says_the_same(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with progress.Bar("train", 100, 20) as bar:
        bar.update(60, "loss 0.123")
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("train: 60 of 100 images, ") and line.endswith("left loss 0.123")
    assert "\x1b" not in line and printed.out == ""
