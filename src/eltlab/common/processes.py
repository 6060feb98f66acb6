"""Child processes: how they are terminated, and how they end with the process that started them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

PR_SET_PDEATHSIG = 1
KILL_SECONDS = 60.0  # how long to wait after SIGKILL, because a device can block a process


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Fork:
    """A child that os.fork made, with the part of subprocess.Popen that `terminate` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code


def terminate(children: Iterable[Fork | subprocess.Popen[bytes]], grace: float) -> None:
    """Ends children that each lead a process group: SIGTERM, and SIGKILL after `grace` seconds."""
    running = [child for child in children if child.poll() is None]
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        for child in running:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
        deadline = time.monotonic() + seconds
        while running and time.monotonic() < deadline:
            time.sleep(0.05)
            running = [child for child in running if child.poll() is None]


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Has the kernel send this process a signal when its parent dies, for whatever reason (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
