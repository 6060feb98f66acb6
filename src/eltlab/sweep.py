"""python -m eltlab.sweep NAME [preset=quick] [overrides]: a study, from where it stands to its table."""

import signal
import sys
from types import FrameType

from eltlab.cli import study_keys
from eltlab.cluster import PLACES, submit_workers
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.config.schema import Config
from eltlab.runs.composing import compose
from eltlab.studies.local_workers import (
    be_worker,
    open_ledger,
    run_workers,
    watch,
    workers_here,
)
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.study_file import known_studies
from eltlab.studies.study_plan import plan_lines
from eltlab.studies.sweep_keys import STORAGE_VARIABLE, SweepKeys


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
        f"                          also as {STORAGE_VARIABLE} in the environment, which hides its password\n"
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
    name, asked, overrides = study_keys(arguments, SweepKeys())
    place, overrides = placed(overrides)
    check_asked(asked, place)
    study = load_study(name, asked.preset, overrides, asked.runs_dir, asked.changes())
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
    from eltlab.studies.summary import summarise

    print(*summarise(ledger), sep="\n")
    print(f"study: {study.folder}")


def placed(overrides: list[str]) -> tuple[Config, list[str]]:
    """A configuration that says where workers run, and the overrides that are left. Raises UserError."""
    mine = [text for text in overrides if text.startswith(PLACES)]
    return compose(mine), [text for text in overrides if text not in mine]


def check_asked(asked: SweepKeys, place: Config) -> None:
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
    run_command(main, usage)
