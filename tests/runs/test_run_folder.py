"""A run and its folder: where it is, how it is opened again, and its lock."""

from dataclasses import replace
from pathlib import Path

import pytest
from support.errors import fails
from support.tiny_run import tiny

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.config.identity import identity
from eltlab.runs.run_folder import Run


def test_a_folder_is_named_by_the_run_and_its_identity(tmp_path: Path) -> None:
    config = tiny(f"runs_dir={tmp_path}", "name=study/arm")
    run = Run.of(config)
    assert run.folder == tmp_path / "study" / "arm" / identity(config)
    assert run.checkpoint.parent.parent == run.rows.parent == run.folder
    assert list(tmp_path.iterdir()) == []  # nothing is written
    assert Run.of(replace(config, seed=1)).folder != run.folder


def test_a_tilde_in_runs_dir_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run.of(tiny("runs_dir=~/runs")).folder.is_relative_to(tmp_path / "runs")


def test_a_written_run_is_opened_with_the_same_configuration(tmp_path: Path) -> None:
    run = Run.of(tiny(f"runs_dir={tmp_path}", "optim.lr=0.0012", "supervision=deep"))
    run.write_config()
    assert Run.open(run.folder) == run


def test_a_run_keeps_its_id_if_its_folder_is_moved(tmp_path: Path) -> None:
    run = Run.of(tiny(f"runs_dir={tmp_path}", "name=one"))
    run.folder.mkdir(parents=True)
    run.write_config()
    moved = run.folder.rename(tmp_path / "moved")
    assert Run.open(moved).id == f"one/{run.folder.name}"


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert fails(Run.open, tmp_path).startswith(f"run={tmp_path}: no config.yaml there")


def test_a_locked_run_is_refused_until_it_is_free(tmp_path: Path) -> None:
    run = Run.of(tiny(f"runs_dir={tmp_path}"))
    run.write_config()
    with run.lock():
        with pytest.raises(UserError, match="another process is training it; wait for it"), run.lock():
            pytest.fail("two locks at once")
        with file_lock(run.folder / ".lock", wait=False) as acquired:
            assert not acquired
    with run.lock(wait=True):
        pass
