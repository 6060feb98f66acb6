"""Takes a study from its last state to its table."""

import sys
import time

from eltlab.studies.local_workers import run_workers
from eltlab.studies.monitor import Monitor
from eltlab.studies.storage_base import retry_refused
from eltlab.studies.study import Study, grid_trials
from eltlab.studies.summary import summarise
from eltlab.studies.sweep_keys import SweepKeys
from eltlab.studies.trial_queue import TrialQueue, open_queue


def fill_queue(study: Study, keys: SweepKeys, workers: int) -> TrialQueue:
    """The queue with all trials of a grid in it, and those to retry. Raises UserError."""
    planned = grid_trials(study) if study.file.sampler == "grid" else []
    queue = open_queue(study, keys, workers)
    if planned:
        queue.fill(planned)
    if keys.retry:
        queue.retry()
    return queue


def run_study(queue: TrialQueue, workers: int, arguments: list[str]) -> None:
    """Runs the trials that are left in worker processes, and prints the table.

    workers: how many; 0 watches those of other machines. arguments: those of this command.
    """
    study, left = queue.study, queue.left()
    if not left:
        print(f"sweep: {study.name} is finished", file=sys.stderr)
    elif not workers:
        watch(queue)
    else:
        workers = min(workers, left)
        count = f"{left} trials to do, {workers} at a time"
        print(f"sweep: {study.name}, {count}", file=sys.stderr, flush=True)
        run_workers(Monitor(queue, workers), workers, [*arguments, f"workers={workers}"])
    print(*summarise(queue), sep="\n")
    print(f"study: {study.folder}")


def watch(queue: TrialQueue) -> None:
    """Shows how workers elsewhere run the trials, until none is left."""
    name = queue.study.name
    print(f"sweep: {name}, run by workers elsewhere; Ctrl-C ends the watching", file=sys.stderr)
    with Monitor(queue, 0) as monitor:
        while retry_refused(queue.left, queue.lease):
            time.sleep(1)
            monitor.update()
