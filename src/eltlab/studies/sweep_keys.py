"""The keys of a study that its command line sets: which preset, which storage, how many workers."""

import os
from dataclasses import dataclass, field
from typing import Any

# The environment variable in place of storage=, which every user could read in the list of processes.
STORAGE_VARIABLE = "ELTLAB_STORAGE"
# Keys that say where workers run. They are no part of the study.
PLACES = ("trainer=", "trainer.slurm.")


def storage_url(text: str | None) -> str | None:
    """The value of storage=, and of STORAGE_VARIABLE in the environment."""
    return None if text in ("", "null") else text


@dataclass
class SweepKeys:
    """The keys of sweep itself, beside those of fit."""

    preset: str | None = None
    workers: int | None = None
    storage: str | None = field(
        default_factory=lambda: storage_url(os.environ.get(STORAGE_VARIABLE))
    )
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

    def changes(self) -> dict[str, Any]:
        """The keys of the study file that the command line changes."""
        given = {key: getattr(self, key) for key in ("seeds", "trials", "threads", "hours")}
        return {key: value for key, value in given.items() if value is not None}
