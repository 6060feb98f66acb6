"""Storages of a study as tests open them: journals, SQLite files and PostgreSQL databases."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from eltlab.studies.storage import open_storage


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Replaces fsync: a journal calls it for every record, and only a power failure would require it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@dataclass(frozen=True)
class Place:
    """Where a storage is; every process opens it for itself."""

    url: str | None
    folder: Path

    def open(self, study="s"):
        return open_storage(self.url, self.folder, study=study)

    def study(self):
        return joined(self.open())


def joined(storage):
    return optuna.create_study(storage=storage.optuna, study_name="s", load_if_exists=True)


@pytest.fixture(params=["journal", pytest.param("postgres", marks=pytest.mark.integration)])
def storage_place(request, tmp_path):
    url = request.getfixturevalue("postgres")() if request.param == "postgres" else None
    return Place(url, tmp_path)


@pytest.fixture
def storage_journal(tmp_path):
    return Place(None, tmp_path)


def run_trials(study, count, name="here"):
    """Finishes trials, each with the name of its process and its index there."""
    for index in range(count):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("by", [name, index])
        study.tell(trial, index)


def told(study):
    """The complete trials, each as the process that ran it and its index there."""
    return sorted(trial.user_attrs["by"] for trial in study.get_trials(states=[TrialState.COMPLETE]))


def content(place):
    return (place.folder / "journal.log").read_bytes()
