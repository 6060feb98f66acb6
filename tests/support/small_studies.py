"""Small studies: their files, and their queues."""

from pathlib import Path

from eltlab.studies.storage import open_storage
from eltlab.studies.study import Study, grid_trials, load_study
from eltlab.studies.trial_queue import TrialQueue
from eltlab.studies.tuning import tuned_arms
from support.tiny_run import TINY

BASE = [*TINY, "trainer.grids=0", "trainer.validations=2", "budget.images=32"]


def written(tmp_path: Path, text: str, name: str = "small.yaml") -> str:
    """Writes a study file whose base is a run that takes moments; returns its path."""
    base = "\n".join(f"  - {override!r}" for override in BASE)
    path = tmp_path / name
    path.write_text(f"base:\n{base}\nthreads: 1\n{text}")
    return str(path)


GRID = """
space:
  loops: [1, 2, 4]
  supervision: [ilsd, final]
seeds: [0]
"""


# Two arms at one loop count, each of which chooses one of three learning rates.
TUNED = """
space:
  supervision: [ilsd, final]
seeds: [0, 1]
tune:
  keys: {optim.lr: [0.001, 0.002, 0.004]}
"""


def opened(tmp_path: Path, text: str = GRID, preset=None, changes=None, overrides=()) -> Study:
    runs = str(tmp_path / "runs")
    return load_study(written(tmp_path, text), preset, list(overrides), runs, changes or {})


def queue_of(study: Study, worker: str = "me", lease: float = 60.0) -> TrialQueue:
    return TrialQueue(study, open_storage(None, study.folder), worker, lease)


def filled(study: Study, worker: str = "me", lease: float = 60.0) -> TrialQueue:
    """The queue of a grid, with all its trials in it."""
    queue = queue_of(study, worker, lease)
    if study.file.tune is None:
        queue.fill(grid_trials(study))
    else:
        queue.fill_arms(tuned_arms(study))
    return queue
