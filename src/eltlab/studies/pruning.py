"""Ends trials early: what a run's validation.csv says, told to the study's pruner."""

import csv
from pathlib import Path

from optuna.study import StudyDirection

from eltlab.config.schema import Config
from eltlab.runs.run_folder import Run
from eltlab.studies.study_file import split_metric
from eltlab.studies.trials import ClaimedTrial, TrialQueue
from eltlab.training.validation import LEVELS


class Pruned(Exception):
    """The pruner ended a trial."""


class Watched:
    """A trial under a pruner: ``look()`` while it runs.

    Optuna compares trials at equal steps, and trials of equal compute differ in images. So a step is
    the share of the trial's own budget, in images of the study's base: images seen, where all see as many.
    """

    def __init__(self, ledger: TrialQueue, claimed: ClaimedTrial, config: Config) -> None:
        study = ledger.study
        self.ledger, self.claimed = ledger, claimed
        self.path = Run.of(config).folder / "validation.csv"
        self.column, loops = split_metric(study.file.watch)
        # A loss is better where it is lower, and Optuna's pruners take the direction of the objective.
        self.sign = -1 if ledger.optuna.direction == StudyDirection.MAXIMIZE else 1
        self.exit = loops or config.loops
        self.images, self.times = study.base.images, config.trainer.validations
        self.size = 0
        # A trial that was taken over has told the pruner what its run had then.
        self.told = set(ledger.trials()[claimed.number].intermediate_values)

    def look(self) -> None:
        """Tells what is new. Raises Pruned where the trial is not worth going on."""
        if not self.tell():
            return
        with self.ledger.storage.refusals():
            hopeless = self.claimed.trial.should_prune()
        if hopeless:
            raise Pruned

    def tell(self) -> bool:
        """Tells Optuna what is new in validation.csv; whether anything was."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self.size:
            return False
        before = len(self.told)
        for number, value in enumerate(measured(self.path, self.column, self.exit), start=1):
            step = round(number / self.times * self.images)
            if step not in self.told:
                self.ledger.report(self.claimed, self.sign * value, step)
                self.told.add(step)
        self.size = size  # the last: what the storage refused is told at the next look
        return len(self.told) > before


def measured(path: Path, column: str, exit: int) -> list[float]:
    """A column of validation.csv at an exit, mean over the levels: one value a validation. What is
    half written is left for later."""
    if not path.is_file():
        return []
    text = path.read_text()
    values: dict[str, list[float]] = {}
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        if row["exit"] == str(exit):
            values.setdefault(row["step"], []).append(float(row[column]))
    return [sum(found) / LEVELS for found in values.values() if len(found) == LEVELS]
