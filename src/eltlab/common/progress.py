"""One progress bar for everything that takes long; quiet lines where stderr is not a terminal."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

QUIET_SECONDS = 30.0  # between two lines where nobody watches a bar


class Bar:
    """``with Bar("train", total, done) as bar: bar.update(done, "loss 0.3")``; counts in images,
    or in another unit.

    On a terminal: a bar with the rate and the time left. Elsewhere a line every half minute.
    """

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.label, self.total, self.first, self.unit = label, total, done, unit
        self.started = self.spoke = time.monotonic()
        self.progress: Progress | None = None
        if sys.stderr.isatty():
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.task = self.progress.add_task(label, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Bar":
        if self.progress is not None:
            self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self, done: int, note: str = "") -> None:
        # The mean rate since the start: it is there after one step, however long a step takes.
        rate = (done - self.first) / max(time.monotonic() - self.started, 1e-9)
        left = f"{rate:,.0f} {self.unit}/s, {duration((self.total - done) / max(rate, 1e-9))} left"
        if self.progress is not None:
            self.progress.update(self.task, completed=done, rate=left, note=note)
        elif time.monotonic() - self.spoke >= QUIET_SECONDS:
            self.spoke = time.monotonic()
            text = f"{self.label}: {done:,} of {self.total:,} {self.unit}, {left} {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
