"""The bar on a real terminal, and lines without one."""

import os
import pty
import subprocess
import sys

CODE = """
import time
from eltlab.common import progress
progress.QUIET_SECONDS = 0.0
with progress.Bar("train", 100, 20) as bar:
    time.sleep(0.05)
    bar.update(60, "loss 0.123")
    time.sleep(0.3)
"""


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
    done = subprocess.Popen([sys.executable, "-c", CODE], stderr=slave, env=environment)
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 65536):
            text += part
    except OSError:  # the other end of a pseudo-terminal is closed
        pass
    assert done.wait() == 0
    seen = text.decode()
    assert "60/100" in seen and "images/s" in seen and "left" in seen and "loss 0.123" in seen


def test_without_a_terminal_a_plain_line_says_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    assert line.startswith("train: 60 of 100 images, ") and line.endswith("left loss 0.123")
    assert "\x1b" not in line and done.stdout == ""
