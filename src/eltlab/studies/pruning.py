"""Ends trials early: reports a run's validation.csv to the pruner of its study."""

import csv
from pathlib import Path

from optuna.study import StudyDirection

from eltlab.config.schema import Config
from eltlab.runs.run_folder import Run
from eltlab.studies.study_file import split_metric
from eltlab.studies.trial_queue import ClaimedTrial, TrialQueue
from eltlab.training.validation import LEVELS


class Pruned(Exception):
    """The pruner ended a trial."""


class Watcher:
    """Watches a running trial for the pruner.

    Optuna compares trials at equal steps, but trials of equal compute see different numbers of images. So a
    step is the fraction of the trial's own budget, in images of the study's base. If all trials see equally
    many images, it is the number of images seen.
    """

    def __init__(self, queue: TrialQueue, claimed: ClaimedTrial, config: Config) -> None:
        study = queue.study
        self.queue, self.claimed = queue, claimed
        self.path = Run.of(config).folder / "validation.csv"
        self.column, loops = split_metric(study.file.watch)
        # Lower losses are better, but Optuna's pruners follow the direction of the objective.
        self.sign = -1 if queue.optuna.direction == StudyDirection.MAXIMIZE else 1
        self.exit = loops or config.loops
        self.images, self.validations = study.base.images, config.trainer.validations
        self.size = 0  # of the file when it was last read
        # If the trial was taken over, its former worker has reported some steps.
        self.reported = set(queue.trials()[claimed.number].intermediate_values)

    def prune_if_hopeless(self) -> None:
        """Reports new values. Raises Pruned if the pruner gives up the trial."""
        if not self.report():
            return
        with self.queue.storage.refusals():
            hopeless = self.claimed.trial.should_prune()
        if hopeless:
            raise Pruned

    def report(self) -> bool:
        """Reports the new values of validation.csv; whether there were any."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self.size:
            return False
        before = len(self.reported)
        values = validation_curve(self.path, self.column, self.exit)
        for number, value in enumerate(values, start=1):
            step = round(number / self.validations * self.images)
            if step not in self.reported:
                self.queue.report(self.claimed, self.sign * value, step)
                self.reported.add(step)
        self.size = size  # last: if the storage refused, the values are reported again
        return len(self.reported) > before


def validation_curve(path: Path, column: str, exit: int) -> list[float]:
    """A column of validation.csv at an exit, one value per complete validation: the mean over levels."""
    if not path.is_file():
        return []
    text = path.read_text()
    values: dict[str, list[float]] = {}
    # The last line may be half written.
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        if row["exit"] == str(exit):
            values.setdefault(row["step"], []).append(float(row[column]))
    return [sum(found) / LEVELS for found in values.values() if len(found) == LEVELS]
