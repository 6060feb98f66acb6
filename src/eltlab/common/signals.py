"""The signals that ask a run to stop, and what stands in for them while a step is under way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGTERM comes before pre-emption, and from torchrun or kill; SIGUSR2 is what submitit has SLURM send
# before the time limit.
STOPS = (signal.SIGTERM, signal.SIGUSR2)
LOADER_SECONDS = 60  # that a step under way may still want batches


class Stopped(BaseException):
    """A process was asked to stop, and has. Not an Exception, as Ctrl-C is none: what catches the
    mistakes of a library must not catch it."""

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code by which shells know that a signal ended a process: 143 for SIGTERM."""
        return 128 + self.number


class Requests:
    """What STOPS do to this process: they end it at once (Stopped is raised where it stands), and
    while `later` is set they are only noted in `number`."""

    def __init__(self) -> None:
        self.number: int | None = None  # of the first signal
        self.later = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:  # a second one would disturb the ending
            self.number = number
            if not self.later:
                raise Stopped(number)

    def heed(self, where: str = "") -> None:
        """Raises Stopped where a signal came."""
        if self.number is not None:
            raise Stopped(self.number, where)

    def listen(self) -> None:
        """Takes the signals over from whoever has them; Python allows that to the main thread alone."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    signal.signal(number, self)


@contextmanager
def listening() -> Iterator[Requests]:
    """Requests that listen while the block runs; after it the signals are whose they were."""
    before = {number: signal.getsignal(number) for number in STOPS}
    requests = Requests()
    requests.listen()
    try:
        yield requests
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is requests:
                signal.signal(number, handler)


def outlive_stops(*_: Any) -> None:
    """Has a loader's process (this one) go on for a while after a signal to stop.

    SLURM signals every process of a job. A loader that died at once would end the step that the run
    wants to finish, by an error.
    """

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.alarm(LOADER_SECONDS)

    for number in STOPS:
        signal.signal(number, end_later)
