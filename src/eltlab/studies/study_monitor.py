"""Shows a study while it runs: done, running, failed, the best trial and the time left."""

import sys
import time

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live

from eltlab.common.progress import QUIET_SECONDS
from eltlab.common.text import format_duration
from eltlab.studies.storage import Refused
from eltlab.studies.study import Study
from eltlab.studies.trial_queue import TrialQueue, counted, failure_reason, is_tuning, seconds_of


class Monitor:
    """Prints the state of a study: ``with Monitor(queue, workers) as monitor: monitor.update()``.

    A terminal shows one line that changes; a file gets a line every half minute. Each trial that ends
    adds a line.
    """

    def __init__(self, queue: TrialQueue, workers: int) -> None:
        self.queue, self.workers = queue, workers
        self.updated = self.printed = time.monotonic()
        self.ended = {t.number for t in counted(queue.trials()) if t.state.is_finished()}
        self.refused = False  # by the storage, at the last update
        self.live = Live(console=Console(stderr=True), refresh_per_second=4)
        self.terminal = sys.stderr.isatty()

    def __enter__(self) -> "Monitor":
        if self.terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.show()  # the trials of the last second
        self.live.stop()  # does nothing if it was not started

    def update(self) -> int:
        """Shows the state of the study, at most once a second. Returns how many trials have ended."""
        return len(self.ended) if time.monotonic() - self.updated < 1 else self.show()

    def show(self) -> int:
        """`update` without waiting for a second to pass."""
        self.updated = now = time.monotonic()
        try:
            with self.queue.storage.refusals():
                trials = counted(self.queue.trials())
                line = status_line(self.queue, trials, self.workers)
        except Refused as refused:  # if it lasts, the workers give up
            if not self.refused:
                self.print(f"{refused}; trying again")
            self.refused = True
            return len(self.ended)
        self.refused = False
        self.live.update(line)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self.ended:
                self.ended.add(trial.number)
                self.print(describe_trial(trial))
        if not self.terminal and now - self.printed >= QUIET_SECONDS:
            self.printed = now
            self.print(line)
        return len(self.ended)

    def print(self, text: str) -> None:
        if self.terminal:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def describe_trial(trial: FrozenTrial) -> str:
    """One line for a trial that ended."""
    seeds = ",".join(map(str, trial.user_attrs.get("seeds", [])))
    what = f"trial {trial.number}, {trial.user_attrs.get('arm', '?')}, seed {seeds}"
    if is_tuning(trial):
        what = f"{what}, tuning"
    if trial.state == TrialState.COMPLETE:
        values = ", ".join(f"{value:.4g}" for value in trial.values)
        return f"{what}: {values} ({format_duration(seconds_of(trial))})"
    if "losses" in trial.user_attrs:
        losses = trial.user_attrs["losses"]
        values = "diverged" if losses is None else f"held-out loss {list(losses.values())[-1]:.4g}"
        return f"{what}: {values} ({format_duration(seconds_of(trial))})"
    return ": ".join(filter(None, [what, trial.state.name.lower(), failure_reason(trial)]))


def status_line(queue: TrialQueue, trials: list[FrozenTrial], workers: int) -> str:
    """The whole study in one line. workers: 0 if they are elsewhere."""
    main = [trial for trial in trials if not is_tuning(trial)]
    count = {state: sum(trial.state == state for trial in main) for state in TrialState}
    complete = [trial for trial in main if trial.state == TrialState.COMPLETE]
    tuning = [trial for trial in trials if is_tuning(trial)]
    left, running = queue.left(), sum(trial.state == TrialState.RUNNING for trial in trials)
    parts = [f"{queue.study.name}: {len(complete)} done", f"{running} running, {left - running} to come"]
    if tuning:
        tuned = sum("losses" in trial.user_attrs for trial in tuning)
        parts.insert(1, f"{tuned} of {len(tuning)} tuning runs done")
        count[TrialState.FAIL] += sum(trial.state == TrialState.FAIL for trial in tuning)
    for state, word in ((TrialState.FAIL, "failed"), (TrialState.PRUNED, "pruned")):
        if count[state]:
            parts.append(f"{count[state]} {word}")
    if complete and len(queue.study.file.objectives) == 1:
        best = queue.optuna.best_trial
        parts.append(f"best {best.value:.4g} ({best.user_attrs.get('arm')})")
    if left and (seconds := seconds_per_trial(trials, share := tuning_share(queue.study))):
        short = sum(not trial.state.is_finished() for trial in tuning)
        rest = seconds * (left - short + short * share) / (workers or running or 1)
        parts.append(f"{format_duration(rest)} left")
    return ", ".join(parts)


def tuning_share(study: Study) -> float:
    """The budget of a tuning run, as a share of a trial's."""
    return 1.0 if study.file.tune is None else study.file.tune.budget


def seconds_per_trial(trials: list[FrozenTrial], share: float) -> float | None:
    """How long a trial takes, by those that are done. share: of it that a tuning run takes."""
    done = [t for t in trials if t.state == TrialState.COMPLETE or "losses" in t.user_attrs]
    budgets = sum(share if is_tuning(trial) else 1.0 for trial in done)
    return sum(map(seconds_of, done)) / budgets if done else None
