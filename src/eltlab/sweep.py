"""python -m eltlab.sweep NAME [preset=quick] [overrides]: a study, from where it stands to its table."""

import os
import platform
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from eltlab.cli import STORAGE, run_verb, study_keys, url_of
from eltlab.compose import compose
from eltlab.config import Config
from eltlab.errors import UserError
from eltlab.processes import die_with
from eltlab.signals import Stopped
from eltlab.study import Study, grid_trials, load_study
from eltlab.study_file import known_studies
from eltlab.study_plan import plan_lines
from eltlab.text import shown

if TYPE_CHECKING:
    from eltlab.ledger import Ledger

GRACE = 30.0  # seconds that workers have to end their trials and to give them back
# Where workers run, which is no part of what a study is.
PLACES = ("trainer=", "trainer.slurm.")
CRASHES = 5  # workers that died without a trial finished in between, after which a sweep gives up


@dataclass
class Asked:
    preset: str | None = None
    workers: int | None = None
    storage: str | None = field(default_factory=lambda: url_of(os.environ.get(STORAGE)))
    runs_dir: str = "runs"
    seeds: list[int] | None = None
    trials: int | None = None
    threads: int | None = None
    hours: float | None = None
    lease: float = 60.0
    retry: bool = False
    plan: bool = False
    worker: int | None = None  # of a sweep that started this process as its nth
    sweep: int | None = None  # the process of that


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "NAME is a file of sweeps/ or a path; overrides are fit's, for all trials. The same command goes on\n"
        "with the study however it ended, on any number of machines at once, or says that it is finished.\n\n"
        "  preset=quick            a part of the study file that says how it differs\n"
        "  workers=2               trials at a time on this machine, which share its cores and GPUs;\n"
        "                          default: one a GPU, else as many as the study's threads leave room for;\n"
        "                          0 starts none and shows those of others at work\n"
        "  trainer=slurm           as many jobs of a cluster instead; trainer.slurm.KEY as in fit\n"
        "  storage=URL             postgresql://…, for many machines; default: a journal beside the runs;\n"
        f"                          also as {STORAGE} in the environment, which hides its password\n"
        "  runs_dir=runs           the study's folder is RUNS_DIR/NAME[-PRESET]\n"
        "  'seeds=[0,1,2]' trials=N threads=N hours=H      in place of the file's\n"
        "  plan=true               says what would be run, and what it costs, and ends\n"
        "  retry=true              runs trials that failed once more\n"
        "  lease=60                seconds without a sign of life, after which a trial is taken over\n\n"
        f"studies: {', '.join(known_studies())}\n\n"
        "examples:\n"
        "  python -m eltlab.sweep loops_vs_depth preset=quick workers=2\n"
        "  python -m eltlab.sweep loops_vs_depth 'seeds=[0,1,2,3,4]'        # runs only what is new"
    )


def main(arguments: list[str]) -> None:
    name, asked, overrides = study_keys(arguments, Asked())
    place, overrides = placed(overrides)
    check_asked(asked, place)
    study = load_study(name, asked.preset, overrides, asked.runs_dir, changes(asked))
    workers = workers_here(study, asked.storage) if asked.workers is None else asked.workers
    if asked.worker is not None:
        be_worker(study, asked, workers)
        return
    planned = grid_trials(study) if study.file.sampler == "grid" else []
    if asked.plan:
        print(*plan_lines(study, planned), sep="\n")
        return
    ledger = open_ledger(study, asked, workers)
    if planned:
        ledger.fill(planned)
    if asked.retry:
        ledger.retry()
    left = ledger.left()
    if left and place.trainer.name == "slurm":
        submit_workers(study, asked, place, min(workers, left), arguments)
        return
    if left and not workers:
        watch(ledger)
    elif left:
        workers = min(workers, left)
        count = f"{left} trials to do, {workers} at a time"
        print(f"sweep: {study.name}, {count}", file=sys.stderr, flush=True)
        run_workers(ledger, workers, [*arguments, f"workers={workers}"])
    else:
        print(f"sweep: {study.name} is finished", file=sys.stderr)
    from eltlab.summary import summarise

    print(*summarise(ledger), sep="\n")
    print(f"study: {study.folder}")


def changes(asked: Asked) -> dict[str, Any]:
    """The keys of the study file that the command line changes."""
    given = {key: getattr(asked, key) for key in ("seeds", "trials", "threads", "hours")}
    return {key: value for key, value in given.items() if value is not None}


def placed(overrides: list[str]) -> tuple[Config, list[str]]:
    """A configuration that says where workers run, and the overrides that are left. Raises UserError."""
    mine = [text for text in overrides if text.startswith(PLACES)]
    return compose(mine), [text for text in overrides if text not in mine]


def check_asked(asked: Asked, place: Config) -> None:
    if not 0 < asked.lease < float("inf"):
        raise UserError(f"lease={asked.lease}: must be a number above 0")
    if asked.workers is not None and asked.workers < 0:
        raise UserError(f"workers={asked.workers}: must be at least 0")
    if place.trainer.name != "slurm":
        return
    if not asked.workers:
        raise UserError("trainer=slurm: say how many jobs, e.g. workers=8")
    if asked.storage is not None and asked.storage.startswith("sqlite:"):
        raise UserError(
            "trainer=slurm with storage=sqlite:…: SQLite does not serve many machines; take "
            "storage=postgresql://…"
        )


def open_ledger(study: Study, asked: Asked, workers: int) -> "Ledger":
    from eltlab.ledger import Ledger
    from eltlab.storage import open_storage

    storage = open_storage(asked.storage, study.folder, workers, study.name)
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return Ledger(study, storage, name, asked.lease)


def be_worker(study: Study, asked: Asked, workers: int) -> None:
    if asked.sweep is not None:
        die_with(asked.sweep, signal.SIGTERM)
    try:
        serve(study, asked, workers)
    except Stopped:
        sys.exit(143)


def serve(study: Study, asked: Asked, workers: int) -> None:
    """Runs trials as one of so many workers of a machine. Raises Stopped at a signal."""
    from eltlab.worker import patiently, work

    threads = study.file.threads or max(1, cores() // workers)
    # Who had this process started has opened the storage before.
    ledger = patiently(lambda: open_ledger(study, asked, workers), asked.lease)
    work(ledger, threads)


def watch(ledger: "Ledger") -> None:
    """Shows how others run the trials, until none is left."""
    from eltlab.view import View
    from eltlab.worker import patiently

    print(
        f"sweep: {ledger.study.name}, the workers of others; Ctrl-C ends the look", file=sys.stderr
    )
    with View(ledger, 0) as view:
        while patiently(ledger.left, ledger.lease):
            time.sleep(1)
            view.update()


# --- workers in jobs of a cluster -----------------------------------------------------------------


def submit_workers(
    study: Study, asked: Asked, place: Config, count: int, arguments: list[str]
) -> None:
    """Submits so many workers, each a job of an array."""
    from eltlab.cluster import WorkerJob, check_cluster, resources, submit, submitit

    slurm = place.trainer.slurm
    check_cluster(slurm)
    variables = {}
    if asked.storage is None:
        print(
            f"storage: the journal in {study.folder} serves many machines only where the file system's "
            "locks (flock) reach them all; else give storage=postgresql://…",
            file=sys.stderr,
        )
    else:
        variables[STORAGE] = asked.storage  # a job's script and command are open to others
    mine = ("storage=", "workers=", "retry=", *PLACES)
    rest = [text for text in arguments if not text.startswith(mine)]
    job = WorkerJob(rest, None if asked.storage is None else shown(asked.storage))
    config = replace(study.base, name=study.name, trainer=replace(study.base.trainer, slurm=slurm))
    with submitit().helpers.environment_variables(**variables):
        submit([job] * count, study.folder / "slurm", slurm, resources(config, 1, 1))
    print("workers=0 in place of trainer=slurm watches them, and writes the table", file=sys.stderr)
    print(f"study: {study.folder}")


def work_in_job(arguments: list[str]) -> None:
    """Runs trials as the one worker of a job. Raises Stopped at a signal."""
    name, asked, overrides = study_keys(arguments, Asked())
    serve(load_study(name, asked.preset, overrides, asked.runs_dir, changes(asked)), asked, 1)


# --- the workers of this machine ------------------------------------------------------------------


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


def run_workers(ledger: "Ledger", count: int, arguments: list[str]) -> None:
    """Starts the workers and watches them until no trial is left; one that dies is started again."""
    from eltlab.view import View

    workers: dict[int, subprocess.Popen[bytes]] = {}
    crashes, finished = 0, -1
    try:
        for n in range(count):
            workers[n] = start(n, arguments)
        with View(ledger, count) as view:
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
        environment[STORAGE] = urls[-1].removeprefix("storage=")
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


def exit_on_signals() -> None:
    """Has SIGTERM and SIGHUP end this process in order, as Ctrl-C does: code 143 or 129."""

    def exit(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # it is ending
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, exit)


if __name__ == "__main__":
    exit_on_signals()
    run_verb(main, usage)
