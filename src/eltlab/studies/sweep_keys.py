"""The keys of a study that its command line sets: which preset, which storage, how many workers."""

import os
from dataclasses import dataclass
from typing import Any

from eltlab.config.keys import key

# The environment variable in place of storage=, which every user could read in the list of processes.
STORAGE_VARIABLE = "ELTLAB_STORAGE"
# Keys that say where workers run. They are no part of the study.
PLACES = ("trainer=", "trainer.slurm.")


def storage_url(text: str | None) -> str | None:
    """The value of storage=, and of STORAGE_VARIABLE in the environment."""
    return None if text in ("", "null") else text


@dataclass
class SweepKeys:
    """The keys of sweep itself, in addition to those of fit."""

    preset: str | None = key(None, "part of the study file that changes the rest, e.g. quick")
    workers: int | None = key(
        None,
        "trials at a time on this machine, or jobs of trainer=slurm; null: one per GPU, else by the "
        "study's threads; 0: start none and show the trials of other machines",
        low=0,
    )
    storage: str | None = key(
        lambda: storage_url(os.environ.get(STORAGE_VARIABLE)),
        "postgresql://…, for many machines; null: a journal in the study's folder; can also be set as "
        f"{STORAGE_VARIABLE} in the environment, which hides its password",
    )
    runs_dir: str = key("runs", "the study's folder is RUNS_DIR/NAME[-PRESET]")
    seeds: list[int] | None = key(None, "seeds in place of the file's, e.g. [0,1,2]")
    trials: int | None = key(None, "number of trials in place of the file's")
    threads: int | None = key(None, "threads per trial in place of the file's")
    hours: float | None = key(None, "time limit in place of the file's")
    lease: float = key(60.0, "seconds without a heartbeat after which a trial is taken over", above=0)
    retry: bool = key(False, "run failed trials once more")
    plan: bool = key(False, "print what would run and what it costs, and end")
    # Set by a sweep for the processes it starts: the number of the worker, and the sweep's process id.
    worker: int | None = key(None, "", internal=True)
    sweep: int | None = key(None, "", internal=True)

    def changes(self) -> dict[str, Any]:
        """The keys of the study file that the command line changes."""
        given = {key: getattr(self, key) for key in ("seeds", "trials", "threads", "hours")}
        return {key: value for key, value in given.items() if value is not None}
