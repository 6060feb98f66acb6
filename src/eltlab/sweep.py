"""python -m eltlab.sweep NAME [preset=quick] [overrides]: starts or resumes a study and prints its table.

NAME is a file of sweeps/ or a path. The overrides are those of fit and apply to all trials. The same command
again resumes the study, on any number of machines at once, or says that it is finished.
trainer=slurm runs the workers as jobs of a cluster; trainer.slurm.KEY as in fit. Its own keys:

examples:
  python -m eltlab.sweep loops_vs_depth preset=quick workers=2
  python -m eltlab.sweep loops_vs_depth 'seeds=[0,1,2,3,4]'        # runs only what is new
"""

import sys

from eltlab.cli import study_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.signals import STOPS_AND_HANGUP, Stopped, listening
from eltlab.config.key_help import help_text, key_help
from eltlab.config.schema import TrainerConfig
from eltlab.runs.compose_config import compose
from eltlab.studies.study import Study, load_study
from eltlab.studies.study_file import PLACES, SweepKeys, known_studies
from eltlab.studies.study_plan import plan_lines


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(SweepKeys()), f"studies: {', '.join(known_studies())}")


def main(arguments: list[str]) -> None:
    name, keys, overrides = study_keys(arguments, SweepKeys())
    place = [text for text in overrides if text.startswith(PLACES)]
    overrides = [text for text in overrides if text not in place]
    trainer = compose(place).trainer
    check_place(keys, trainer)
    study = load_study(name, keys.preset, overrides, keys.runs_dir, keys.changes())
    if keys.plan:
        print_plan(study, keys)
        return

    # Imported late: --help and plan=true work without Optuna, which takes a second to import.
    from eltlab.studies.run_study import default_workers, fill_queue, run_study

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


def print_plan(study: Study, keys: SweepKeys) -> None:
    """Prints what would run, and how much of it is done. Raises UserError if running would."""
    stored: list[str] = []
    if keys.storage is not None or study.folder.is_dir():
        from eltlab.studies.stored_state import stored_lines  # imports Optuna

        stored = stored_lines(study, keys)
    print(*plan_lines(study), *stored, sep="\n")


def check_place(keys: SweepKeys, trainer: TrainerConfig) -> None:
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
