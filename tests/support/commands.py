"""Runs verbs in real processes that are forked from this one, which has imported what they need.

A fork starts at once; `python -m eltlab.fit` would import everything again. The tests in
test___main__.py and those named "the real command" start Python itself.
"""

import fcntl
import gc
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from eltlab.common.processes import Fork
from eltlab.common.signals import ALL_STOPS


class Command(Fork):
    """A running verb, with the part of subprocess.Popen that tests use. Its output is text."""

    def __init__(self, pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        super().__init__(pid)
        self.stdout, self.stderr = stdout, stderr

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 600.0) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 600.0) -> tuple[str, str]:
        """Waits for the end; returns all output."""
        self.wait(timeout)
        return self.output()

    def output(self) -> tuple[str, str]:
        """What it has printed so far."""
        return read(self.stdout), read(self.stderr)


def read(file: IO[bytes]) -> str:
    """The whole file. pread does not move the offset, which its writers share."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def start(
    verb: str,
    *arguments: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    session: bool = True,
) -> Command:
    """Starts python -m eltlab.VERB ARGUMENTS as a fork.

    env: variables in addition to those of this process. session: whether it leads a session.
    """

    def work() -> None:
        if cwd is not None:
            os.chdir(cwd)
        os.environ.update(env or {})
        if verb == "sweep":
            subprocess.Popen = ForkedPopen  # type: ignore[misc]
        run_module(f"eltlab.{verb}", list(map(str, arguments)))

    stdout, stderr = appended_file(), appended_file()
    return Command(fork(work, {1: stdout, 2: stderr}, session), stdout, stderr)


def appended_file() -> IO[bytes]:
    """A temporary file without a name, so no clean-up removes it. All writes to it append."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file


def run(verb: str, *arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Runs a verb to its end, like subprocess.run(capture_output=True, text=True)."""
    command = start(verb, *arguments, **options)
    out, err = command.communicate()
    return subprocess.CompletedProcess([verb, *arguments], command.wait(), out, err)


def run_module(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def fork(work: Callable[[], None], outputs: Mapping[int, IO[bytes]], session: bool) -> int:
    """Forks; the child runs work and exits as Python would. outputs: files by the stream they replace."""
    sys.stdout.flush()
    sys.stderr.flush()
    if child := os.fork():
        return child
    code = 1
    try:
        gc.freeze()  # the parent removes its own garbage
        if session:
            os.setsid()
        for number in ALL_STOPS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.stdin = open(os.devnull)  # noqa: SIM115
        for descriptor, file in outputs.items():
            os.dup2(file.fileno(), descriptor)
        # pytest has replaced both. They write to 1 and 2 themselves, which a trial of a sweep redirects.
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)  # the clean-up is pytest's


class ForkedPopen(Fork):
    """Instead of subprocess.Popen in a forked sweep: its workers are forks too."""

    def __init__(
        self, command: list[str], env: Mapping[str, str], start_new_session: bool = False, **_: object
    ) -> None:
        assert command[1] == "-m", command
        environment, (module, *arguments) = dict(env), command[2:]

        def work() -> None:
            os.environ.clear()
            os.environ.update(environment)
            run_module(module, arguments)

        with open(os.devnull, "wb") as null:
            super().__init__(fork(work, {1: null}, session=start_new_session))
