"""python -m eltlab.sweep NAME [preset=quick] [overrides]: a study, from where it stands to its table."""

import sys

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.signals import STOPS_AND_HANGUP, Stopped, listening
from eltlab.config.schema import TrainerConfig
from eltlab.runs.composing import compose
from eltlab.studies.study import load_study
from eltlab.studies.study_file import known_studies
from eltlab.studies.study_plan import plan_lines
from eltlab.studies.sweep_keys import PLACES, STORAGE_VARIABLE, SweepKeys


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
    name, keys, overrides = study_keys(arguments, SweepKeys())
    trainer, overrides = compose_place(overrides)
    check_keys(keys, trainer)
    study = load_study(name, keys.preset, overrides, keys.runs_dir, keys.changes())
    if keys.plan:
        print(*plan_lines(study), sep="\n")
        return

    # Imported late: --help and plan=true work without Optuna, which takes a second to import.
    from eltlab.studies.local_workers import default_workers
    from eltlab.studies.run_study import fill_queue, run_study

    workers = default_workers(study, keys.storage) if keys.workers is None else keys.workers
    if keys.worker is not None:
        from eltlab.studies.worker import run_worker

        try:
            run_worker(study, keys, workers)
        except Stopped as stop:  # without a message: the sweep that started this worker has one
            sys.exit(stop.code)
        return
    queue = fill_queue(study, keys, workers)
    left = queue.left()
    if left and trainer.name == "slurm":
        from eltlab.cluster import submit_workers

        submit_workers(study, keys, trainer.slurm, min(workers, left), arguments)
    else:
        run_study(queue, workers, arguments)


def compose_place(overrides: list[str]) -> tuple[TrainerConfig, list[str]]:
    """Where the workers run, and the overrides that are part of the study. Raises UserError."""
    place = [text for text in overrides if text.startswith(PLACES)]
    return compose(place).trainer, [text for text in overrides if text not in place]


def check_keys(keys: SweepKeys, trainer: TrainerConfig) -> None:
    if not 0 < keys.lease < float("inf"):
        raise UserError(f"lease={keys.lease}: must be a number above 0")
    if keys.workers is not None and keys.workers < 0:
        raise UserError(f"workers={keys.workers}: must be at least 0")
    if trainer.name != "slurm":
        return
    if not keys.workers:
        raise UserError("trainer=slurm: give the number of jobs, e.g. workers=8")
    if keys.storage is not None and keys.storage.startswith("sqlite:"):
        raise UserError(
            "trainer=slurm with storage=sqlite:…: SQLite does not serve many machines; set "
            "storage=postgresql://…"
        )


if __name__ == "__main__":
    with listening(STOPS_AND_HANGUP):
        run_command(main, usage)
