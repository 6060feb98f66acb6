"""Sweeps of small studies, in processes that are forked from this one."""

import subprocess
from pathlib import Path

from optuna.trial import TrialState

from eltlab.common.files import file_lock
from eltlab.studies.worker import preload
from support import commands
from support.small_studies import GRID, opened, queue_of, written


def start_sweep(file: str, runs: Path, *arguments: str) -> commands.Command:
    """Starts a sweep; its workers are forks too."""
    preload()  # once here, and not in every fork
    return commands.start("sweep", file, f"runs_dir={runs}", *arguments)


def run_sweep(tmp_path: Path, text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the whole study; it must succeed."""
    preload()
    done = commands.run("sweep", written(tmp_path, text), f"runs_dir={tmp_path / 'runs'}", *arguments)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def states(tmp_path: Path, text: str = GRID, *overrides: str) -> list[TrialState]:
    """How the trials of a study in this folder ended."""
    return [trial.state for trial in queue_of(opened(tmp_path, text, overrides=overrides)).trials()]


def is_training(folder: Path) -> bool:
    """Whether a process trains the run in this folder."""
    with file_lock(folder / ".lock", wait=False) as free:
        return not free
