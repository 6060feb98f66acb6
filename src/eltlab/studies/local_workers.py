"""The workers of a study on this machine: started, watched, restarted and terminated."""

import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from eltlab.common.errors import UserError
from eltlab.common.processes import die_with_parent
from eltlab.common.signals import Stopped
from eltlab.studies.study import Study
from eltlab.studies.sweep_keys import STORAGE_VARIABLE, SweepKeys

if TYPE_CHECKING:
    from eltlab.studies.trials import TrialQueue

GRACE = 30.0  # seconds that workers have to end their trials and to give them back

CRASHES = 5  # workers that died without a trial finished in between, after which a sweep gives up


def open_ledger(study: Study, asked: SweepKeys, workers: int) -> "TrialQueue":
    from eltlab.studies.storage import open_storage
    from eltlab.studies.trials import TrialQueue

    storage = open_storage(asked.storage, study.folder, workers, study.name)
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return TrialQueue(study, storage, name, asked.lease)


def be_worker(study: Study, asked: SweepKeys, workers: int) -> None:
    if asked.sweep is not None:
        die_with_parent(asked.sweep, signal.SIGTERM)
    try:
        serve(study, asked, workers)
    except Stopped:
        sys.exit(143)


def serve(study: Study, asked: SweepKeys, workers: int) -> None:
    """Runs trials as one of so many workers of a machine. Raises Stopped at a signal."""
    from eltlab.studies.worker import patiently, work

    threads = study.file.threads or max(1, cores() // workers)
    # Who had this process started has opened the storage before.
    ledger = patiently(lambda: open_ledger(study, asked, workers), asked.lease)
    work(ledger, threads)


def watch(ledger: "TrialQueue") -> None:
    """Shows how others run the trials, until none is left."""
    from eltlab.studies.monitor import Monitor
    from eltlab.studies.worker import patiently

    print(
        f"sweep: {ledger.study.name}, the workers of others; Ctrl-C ends the look", file=sys.stderr
    )
    with Monitor(ledger, 0) as view:
        while patiently(ledger.left, ledger.lease):
            time.sleep(1)
            view.update()


def workers_here(study: Study, storage: str | None) -> int:
    """Trials at a time on this machine, where nobody says: one a GPU, else the cores over the threads."""
    if storage is not None and storage.startswith("sqlite:"):
        return 1
    if study.base.trainer.accelerator != "cpu" and visible_gpus():
        return len(visible_gpus())
    return max(1, cores() // (study.file.threads or cores()))


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def run_workers(ledger: "TrialQueue", count: int, arguments: list[str]) -> None:
    """Starts the workers and watches them until no trial is left; one that dies is started again."""
    from eltlab.studies.monitor import Monitor

    workers: dict[int, subprocess.Popen[bytes]] = {}
    crashes, finished = 0, -1
    try:
        for n in range(count):
            workers[n] = start(n, arguments)
        with Monitor(ledger, count) as view:
            while workers:
                time.sleep(0.2)
                done = view.update()
                crashes, finished = (0, done) if done > finished else (crashes, finished)
                for n, process in list(workers.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del workers[n]
                    if code == 2:
                        raise UserError("a worker gave up; what it said is above")
                    if code:  # one that finds nothing left ends well
                        crashes += 1
                        if crashes >= CRASHES:
                            raise UserError(
                                f"workers died {crashes} times in a row, the last with {code}"
                            )
                        workers[n] = start(n, arguments)
    finally:
        end(list(workers.values()))


def end(workers: "list[subprocess.Popen[bytes]]") -> None:
    """Has workers give their trials back, and kills those that cannot: then the lease runs out."""
    for process in workers:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in workers:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start(number: int, arguments: list[str]) -> "subprocess.Popen[bytes]":
    """A worker process, which sees its share of the GPUs.

    In a session of its own: what a terminal sends to all its processes reaches the sweep alone, which
    ends its workers in order.
    """
    environment = dict(os.environ)
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    urls = [text for text in arguments if text.startswith("storage=")]
    if urls:  # the list of processes is open to all, a process's environment is not
        environment[STORAGE_VARIABLE] = urls[-1].removeprefix("storage=")
    rest = [text for text in arguments if text not in urls]
    command = [sys.executable, "-m", "eltlab.sweep", *rest]
    command += [f"worker={number}", f"sweep={os.getpid()}"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def visible_gpus() -> list[str]:
    """The identifiers of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [part for part in allowed.split(",") if part.strip() and not part.startswith("-")]
    devices = Path("/proc/driver/nvidia/gpus")
    return [str(n) for n in range(len(list(devices.iterdir())))] if devices.is_dir() else []
