"""The signals that ask a process to stop: they stop it at once, or are noted until a safe point.

with listening() as requests:       # from here on a signal raises Stopped where the code stands,
    requests.deferred = True        # and from here on it is only noted,
    requests.raise_if_stopped()     # until this line
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGTERM comes before pre-emption, and from torchrun or kill; SIGUSR2 is what submitit has SLURM send
# before the time limit.
STOPS = (signal.SIGTERM, signal.SIGUSR2)
STOPS_AND_HANGUP = (*STOPS, signal.SIGHUP)  # SIGHUP: the terminal was closed
ALL_STOPS = (*STOPS_AND_HANGUP, signal.SIGINT)
LOADER_SECONDS = 60  # for which the step under way may still need batches


class Stopped(BaseException):
    """The process was asked to stop, and did.

    It is no Exception, like KeyboardInterrupt: code that catches a library's errors must not catch it.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code that shells give a process that a signal ended: 143 for SIGTERM."""
        return 128 + self.number


class Requests:
    """Handles signals: raises Stopped at once, or notes them while `deferred` is set."""

    def __init__(self, signals: Sequence[signal.Signals] = STOPS, deferred: bool = False) -> None:
        self.signals, self.deferred = signals, deferred
        self.number: int | None = None  # of the first signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:  # a second one would interrupt the cleaning up
            self.number = number
            if not self.deferred:
                raise Stopped(number)

    def raise_if_stopped(self, where: str = "") -> None:
        """Raises Stopped if a signal came."""
        if self.number is not None:
            raise Stopped(self.number, where)

    def listen(self) -> None:
        """Takes over the signals from their handlers; Python allows this in the main thread only."""
        if threading.current_thread() is threading.main_thread():
            for number in self.signals:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                    signal.signal(number, self)


@contextmanager
def listening(
    signals: Sequence[signal.Signals] = STOPS, deferred: bool = False
) -> Iterator[Requests]:
    """Requests that handle the signals while the block runs; then the former handlers return."""
    before = {number: signal.getsignal(number) for number in signals}
    requests = Requests(signals, deferred)
    requests.listen()
    try:
        yield requests
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is requests:
                signal.signal(number, handler)


def outlive_stops(*_: Any) -> None:
    """Keeps this process, a data loader's, alive for LOADER_SECONDS after a signal to stop.

    SLURM signals every process of a job. A loader that ended at once would fail the step that the run
    wants to finish.
    """

    def end_later(number: int, frame: FrameType | None) -> None:
        signal.alarm(LOADER_SECONDS)

    for number in STOPS:
        signal.signal(number, end_later)
