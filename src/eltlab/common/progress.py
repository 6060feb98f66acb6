"""A progress bar on a terminal, and occasional lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eltlab.common.text import format_clock

QUIET_SECONDS = 30.0  # between two lines if stderr is not a terminal


class Bar:
    """``with Bar("train", total, done) as bar: bar.update(done, "loss 0.3")``. unit: what is counted."""

    def __init__(self, label: str, total: int, done: int = 0, unit: str = "images") -> None:
        self.label, self.total, self.first, self.unit = label, total, done, unit
        self.started = self.printed = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self.task = self.progress.add_task(label, total=total, completed=done, rate="", note="")

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        # The mean since the start is known after one step, even if steps are slow.
        rate = (done - self.first) / max(now - self.started, 1e-9)
        seconds = format_clock((self.total - done) / max(rate, 1e-9))
        left = f"{rate:,.0f} {self.unit}/s, {seconds} left"
        self.progress.update(self.task, completed=done, rate=left, note=note)
        if self.progress.disable and now - self.printed >= QUIET_SECONDS:
            self.printed = now
            text = f"{self.label}: {done:,} of {self.total:,} {self.unit}, {left} {note}"
            print(text.rstrip(), file=sys.stderr, flush=True)
