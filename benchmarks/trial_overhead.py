"""Measures what a trial of a sweep costs in addition to training and evaluation.

    python benchmarks/trial_overhead.py

Eight small runs are trained twice: as the trials of a study with one worker, and one by one in a
process that has already run one. Prints seconds per run of both, and for the whole command.
"""

import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from eltlab import sweep
from eltlab.studies.storage import open_storage
from eltlab.studies.study import Study, grid_trials, load_study
from eltlab.studies.trial_queue import TrialQueue
from eltlab.training.fit import fit

TRIALS = 8
FILE = f"""
base: [experiment=demo, budget.images=1600, metrics.samples=100, sampler.steps=8, trainer.grids=0]
space: {{optim.lr: {[round(1e-3 * (n + 1), 4) for n in range(TRIALS)]}}}
seeds: [0]
threads: 1
"""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "small.yaml"
        file.write_text(FILE)
        plain = load_study(str(file), None, [], f"{place}/plain", {})
        alone = median(seconds(plain))
        start = time.perf_counter()
        sweep.main([str(file), "workers=1", f"runs_dir={place}/runs"])
        whole = (time.perf_counter() - start) / TRIALS
        apart = median(between_starts(load_study(str(file), None, [], f"{place}/runs", {})))
    print(f"seconds per run: {alone:.2f} in one process, {apart:.2f} as a trial: {apart - alone:.2f} more")
    print(f"start and end of the sweep shared among {TRIALS} trials: {whole - alone:.2f} more")


def seconds(study: Study) -> list[float]:
    """The seconds of each configuration in this process, without the first, which warms up."""
    found = []
    for trial in grid_trials(study):
        start = time.perf_counter()
        fit(trial.config)
        found.append(time.perf_counter() - start)
    return found[1:]


def between_starts(study: Study) -> list[float]:
    """The seconds from the start of each trial to the start of the next."""
    trials = TrialQueue(study, open_storage(None, study.folder), "reader", 60.0).trials()
    starts = sorted(trial.datetime_start for trial in trials if trial.datetime_start is not None)
    return [(b - a).total_seconds() for a, b in pairwise(starts)]


if __name__ == "__main__":
    sys.exit(main())
