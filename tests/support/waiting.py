"""Waits for other processes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def until(
    condition: Callable[[], object], seconds: float = 600.0, log: Path | None = None, process: Any = None
) -> None:
    """Waits until other processes make the condition true, or fails.

    log: is shown if the wait fails. process: a Command or Popen that makes it true; if that ends first,
    the wait fails at once and shows what it printed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"exit code {process.poll()}: {process.communicate()}")
        text = log.read_text() if log and log.is_file() else "it did not happen"
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
