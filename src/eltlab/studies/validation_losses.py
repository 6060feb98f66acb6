"""The losses in a run's validation.csv, as a study reads them: for its pruner, and to tune its arms."""

import csv
from pathlib import Path

from eltlab.config.schema import Config
from eltlab.runs.run_folder import Run
from eltlab.training.validation import LEVELS


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


def tuning_losses(config: Config) -> dict[int, float]:
    """The held-out loss of each exit of a tuning run, the mean over levels. Empty until it is measured.

    A tuning run validates once, after its last step. What it holds out is the tenth of data.tuning.
    """
    path = Run.of(config).folder / "validation.csv"
    curves = {n: validation_curve(path, "loss", n) for n in range(1, config.loops + 1)}
    return {n: curve[-1] for n, curve in curves.items()} if all(curves.values()) else {}
