"""Runs a study from its stored state to its table: fills the queue, and starts workers or watches them."""

import os
import subprocess
import sys
import time
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.common.processes import cores, terminate
from eltlab.studies.storage import retry_refused
from eltlab.studies.study import Study, grid_trials
from eltlab.studies.study_file import STORAGE_VARIABLE, SweepKeys
from eltlab.studies.study_monitor import Monitor
from eltlab.studies.summary import summarise
from eltlab.studies.trial_queue import TrialQueue, open_queue
from eltlab.studies.tuning import tuned_arms

GRACE = 30.0  # seconds that workers have to end their trials and release them
CRASHES = 5  # this many workers that die in a row, without a finished trial in between, end a sweep


def fill_queue(study: Study, keys: SweepKeys, workers: int) -> TrialQueue:
    """The queue with all trials of a grid in it, and those to retry. Raises UserError."""
    # Before the storage is opened: a mistake in a configuration leaves nothing behind.
    arms = tuned_arms(study) if study.file.tune else []
    planned = grid_trials(study) if study.file.sampler == "grid" and not arms else []
    queue = open_queue(study, keys, workers)
    if arms:
        queue.fill_arms(arms)
    if planned:
        queue.fill(planned)
    if keys.retry:
        queue.retry()
    if queue.left():
        queue.check_code()
    return queue


def run_study(queue: TrialQueue, workers: int, arguments: list[str]) -> None:
    """Runs the trials that are left in worker processes, and prints the table.

    workers: how many; 0 watches those of other machines. arguments: those of this command.
    """
    study, left = queue.study, queue.left()
    if not left:
        print(f"sweep: {study.name} is finished", file=sys.stderr)
    elif not workers:
        print(f"sweep: {study.name}, run by workers elsewhere; Ctrl-C stops watching", file=sys.stderr)
        with Monitor(queue, 0) as monitor:
            while retry_refused(queue.left, queue.lease):
                time.sleep(1)
                monitor.update()
    else:
        workers = min(workers, left)
        print(f"sweep: {study.name}, {left} trials to do, {workers} at a time", file=sys.stderr, flush=True)
        run_workers(Monitor(queue, workers), workers, [*arguments, f"workers={workers}"])
    print(*summarise(queue), sep="\n")
    print(f"study: {study.folder}")


# --- workers on this machine -----------------------------------------------------------------------


def default_workers(study: Study, storage: str | None) -> int:
    """How many trials run at a time: one per GPU, else as many as the cores allow with their threads."""
    if storage is not None and storage.startswith("sqlite:"):
        return 1
    if study.base.trainer.accelerator != "cpu" and visible_gpus():
        return len(visible_gpus())
    return max(1, cores() // (study.file.threads or cores()))


def visible_gpus() -> list[str]:
    """The identifiers of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [part for part in allowed.split(",") if part.strip() and not part.startswith("-")]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(n) for n in range(len(list(devices.iterdir())))] if devices.is_dir() else []


def run_workers(monitor: Monitor, count: int, arguments: list[str]) -> None:
    """Runs workers until no trial is left; replaces dead ones. Raises UserError after CRASHES crashes."""
    workers: dict[int, subprocess.Popen[bytes]] = {}
    crashes, finished = 0, -1
    try:
        for number in range(count):
            workers[number] = start_worker(number, arguments)
        with monitor:
            while workers:
                time.sleep(0.2)
                done = monitor.update()
                crashes, finished = (0, done) if done > finished else (crashes, finished)
                for number, process in list(workers.items()):
                    if (code := process.poll()) is None:
                        continue
                    del workers[number]
                    if code == 2:
                        raise UserError("a worker gave up; its message is above")
                    if code:  # 0: the worker found no trial left
                        crashes += 1
                        if crashes >= CRASHES:
                            raise UserError(f"workers died {crashes} times in a row, the last with {code}")
                        workers[number] = start_worker(number, arguments)
    finally:
        terminate(workers.values(), GRACE)  # a killed worker's lease expires


def start_worker(number: int, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """Starts a worker process, with one of the GPUs if there are any.

    It has its own session: a signal that a terminal sends to all its processes reaches the sweep only,
    which then ends its workers cleanly.
    """
    environment = dict(os.environ)
    if gpus := visible_gpus():
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    if urls := [text for text in arguments if text.startswith("storage=")]:
        # Every user can list the arguments of a process, but not its environment.
        environment[STORAGE_VARIABLE] = urls[-1].removeprefix("storage=")
    rest = [text for text in arguments if text not in urls]
    command = [sys.executable, "-m", "eltlab.sweep", *rest, f"worker={number}", f"sweep={os.getpid()}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
