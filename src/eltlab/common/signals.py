"""Handles the signals that ask a process to stop: at once, or at the next safe point.

with listening() as requests:       # from here on a signal raises Stopped immediately
    requests.deferred = True        # from here on it is only noted
    requests.raise_if_stopped()     # raises Stopped if a signal was noted
"""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGTERM is sent before pre-emption, by torchrun and by kill; SIGUSR2 by SLURM before the time limit,
# as submitit requests.
STOPS = (signal.SIGTERM, signal.SIGUSR2)
STOPS_AND_HANGUP = (*STOPS, signal.SIGHUP)  # SIGHUP: the terminal was closed
ALL_STOPS = (*STOPS_AND_HANGUP, signal.SIGINT)
LOADER_SECONDS = 60  # the training step in progress may need batches for this long


class Stopped(BaseException):
    """A signal stopped the process.

    Not an Exception, like KeyboardInterrupt: code that catches a library's errors must not catch it.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{where}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code that shells give a process that a signal ended: 143 for SIGTERM."""
        return 128 + self.number


class Requests:
    """A signal handler that raises Stopped at once, or notes the signal while `deferred` is set."""

    def __init__(self, signals: Sequence[signal.Signals] = STOPS, deferred: bool = False) -> None:
        self.signals, self.deferred = signals, deferred
        self.number: int | None = None  # of the first signal

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:  # a second signal must not interrupt the cleanup
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
def listening(signals: Sequence[signal.Signals] = STOPS, deferred: bool = False) -> Iterator[Requests]:
    """Handles the signals while the block runs; afterwards their former handlers are restored."""
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
    still has to finish.
    """
    for number in STOPS:
        signal.signal(number, lambda *_: signal.alarm(LOADER_SECONDS))  # SIGALRM ends it
