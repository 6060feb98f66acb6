"""Source that is edited between the stop and the resumption of a run, or during a study, is detected.

The real commands, on a copy of the package that a test edits.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from support.small_studies import written
from support.tiny_run import TINY, find_run
from support.waiting import until

pytestmark = pytest.mark.integration

FIT = [*TINY, "loops=2", "evaluate_loops=[1]", "trainer.grids=0", "trainer.validations=0"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of src/, conf/ and analysis/."""
    ignored = shutil.ignore_patterns("__pycache__", "data")
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, symlinks=True)
    shutil.copytree(ROOT / "analysis", tmp_path / "copy" / "analysis", ignore=ignored)
    return tmp_path / "copy"


def start(checkout: Path, verb: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-m", f"eltlab.{verb}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=checkout, stdout=pipe, stderr=pipe, text=True)


def run(checkout: Path, verb: str, *arguments: str) -> tuple[int, str]:
    """The exit code of a verb and what it prints to stderr."""
    process = start(checkout, verb, *arguments)
    _, errors = process.communicate()
    return process.returncode, errors


def edit_the_loss(checkout: Path) -> None:
    path = checkout / "src" / "eltlab" / "training" / "supervision.py"
    path.write_text(path.read_text() + "# an edit of the loss\n")


def source_of(runs: Path) -> str:
    checkpoint = torch.load(find_run(runs) / "checkpoints" / "last.ckpt", weights_only=True)
    return str(checkpoint["eltlab"]["source"])


def test_a_run_that_was_stopped_does_not_resume_under_edited_source(checkout: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [*FIT, f"runs_dir={runs}", "trainer.checkpoint_seconds=0"]
    stopped = start(checkout, "fit", *command, "budget.images=800000")
    until(lambda: list(runs.rglob("last.ckpt")), process=stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 143
    source = source_of(runs)
    assert f"(source {source})" in (find_run(runs) / "config.yaml").read_text().splitlines()[0]
    supervision = checkout / "src" / "eltlab" / "training" / "supervision.py"
    original = supervision.read_text()
    edit_the_loss(checkout)
    code, errors = run(checkout, "fit", *command, "budget.images=800000")
    assert code == 2 and f"(source {source}), and this is eltlab" in errors, errors
    assert "restore that version to resume the run, or start a new run under another name=" in errors
    supervision.write_text(original)  # restored, it resumes
    resumed = start(checkout, "fit", *command, "budget.images=800000")
    assert resumed.stderr is not None
    lines = iter(resumed.stderr.readline, "")
    assert any(line.startswith("resumed at ") for line in lines)
    resumed.send_signal(signal.SIGTERM)
    resumed.communicate()


def test_source_that_is_edited_during_a_study_is_detected(checkout: Path, tmp_path: Path) -> None:
    """The trials of a running worker are of the code it imported; a worker that starts later is refused."""
    text = "space:\n  optim.lr: [0.001, 0.002, 0.003, 0.004]\nseeds: [0]\n"
    command = [written(tmp_path, text), f"runs_dir={tmp_path / 'runs'}", "workers=1", "budget.images=1600"]
    sweep = start(checkout, "sweep", *command)

    def measured() -> list[Path]:
        return list((tmp_path / "runs").rglob("rows.jsonl"))

    until(measured, process=sweep)
    edit_the_loss(checkout)
    until(lambda: len(measured()) == 2, process=sweep)  # trained after the edit
    sweep.send_signal(signal.SIGINT)
    sweep.communicate()
    found = {json.loads(line)["source"] for path in measured() for line in path.read_text().splitlines()}
    assert len(found) == 1
    code, errors = run(checkout, "sweep", *command)
    assert code == 2 and f"(source {found.pop()}), and this is eltlab" in errors, errors
    assert "restore that version to continue it, or start another study" in errors
