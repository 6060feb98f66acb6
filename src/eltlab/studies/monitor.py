"""A study while it runs: done, running, failed, the best so far and the time that is left."""

import sys
import time
from types import TracebackType

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live

from eltlab.common.progress import QUIET_SECONDS
from eltlab.common.text import format_duration
from eltlab.studies.storage import Refused
from eltlab.studies.trials import TrialQueue, counted, reason


class Monitor:
    """``with View(ledger, workers) as view: view.update()``: a line that changes on a terminal, and
    elsewhere a line every half minute and for every trial that ends."""

    def __init__(self, ledger: TrialQueue, workers: int) -> None:
        self.ledger, self.workers = ledger, workers
        self.looked = self.spoke = time.monotonic()
        self.ended = {
            trial.number for trial in counted(ledger.trials()) if trial.state.is_finished()
        }
        self.done = len(self.ended)
        self.refused = False  # whether the storage did not answer at the last look
        self.live: Live | None = None
        if sys.stderr.isatty():
            self.live = Live(console=Console(stderr=True), refresh_per_second=4)

    def __enter__(self) -> "Monitor":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self) -> int:
        """Shows how things stand, at most once a second; how many trials have ended."""
        now = time.monotonic()
        if now - self.looked < 1:
            return self.done
        self.looked = now
        try:
            with self.ledger.storage.refusals():
                trials = counted(self.ledger.trials())
                line = status(self.ledger, trials, self.workers)
        except Refused as refused:  # the workers give up where that lasts
            if not self.refused:
                self.say(f"{refused}; trying again")
            self.refused = True
            return self.done
        self.refused = False
        ended = [trial for trial in trials if trial.state.is_finished()]
        new = [trial for trial in ended if trial.number not in self.ended]
        self.ended |= {trial.number for trial in new}
        self.done = len(ended)
        if self.live is not None:
            self.live.update(line)
        for trial in new:
            self.say(told(trial))
        if self.live is None and now - self.spoke >= QUIET_SECONDS:
            self.spoke = now
            self.say(line)
        return self.done

    def say(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def told(trial: FrozenTrial) -> str:
    """One line for a trial that ended."""
    seeds = ",".join(map(str, trial.user_attrs.get("seeds", [])))
    what = f"trial {trial.number}, {trial.user_attrs.get('arm', '?')}, seed {seeds}"
    if trial.state == TrialState.COMPLETE:
        assert trial.duration is not None
        values = ", ".join(f"{value:.4g}" for value in trial.values)
        return f"{what}: {values} ({format_duration(trial.duration.total_seconds())})"
    return ": ".join(filter(None, [what, trial.state.name.lower(), reason(trial)]))


def status(ledger: TrialQueue, trials: list[FrozenTrial], workers: int) -> str:
    """The whole study in one line."""
    count = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    left = ledger.left()
    at_once = workers or max(count[TrialState.RUNNING], 1)  # 0: those of others
    parts = [f"{ledger.study.name}: {count[TrialState.COMPLETE]} done"]
    parts += [f"{count[TrialState.RUNNING]} running, {left - count[TrialState.RUNNING]} to come"]
    for state, word in ((TrialState.FAIL, "failed"), (TrialState.PRUNED, "pruned")):
        if count[state]:
            parts.append(f"{count[state]} {word}")
    if complete and len(ledger.study.file.objectives) == 1:
        best = ledger.optuna.best_trial
        parts.append(f"best {best.value:.4g} ({best.user_attrs.get('arm')})")
    seconds = [trial.duration.total_seconds() for trial in complete if trial.duration is not None]
    if seconds and left:
        parts.append(f"{format_duration(sum(seconds) / len(seconds) * left / at_once)} left")
    return ", ".join(parts)
