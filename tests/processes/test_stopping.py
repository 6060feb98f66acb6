"""A run that a signal stops says so, checkpoints first, and resumes to the same end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from support.commands import Command, start
from support.run_outcomes import assert_same, wait_for_signals_at, weights_rows_metrics
from support.slurm import text
from support.tiny_run import TINY, find_run
from support.waiting import until

from eltlab import fit
from eltlab.training.callbacks import Agreement

pytestmark = pytest.mark.integration

# Checkpoints only at the end and at a signal.
OVERRIDES = [*TINY, "trainer.checkpoint_seconds=1000", "trainer.log_every=1", "trainer.grids=0"]
EVALUATED = [*OVERRIDES, "trainer.validations=4", "model.dropout=0.1", "evaluate_loops=[4]"]
QUIET = [*OVERRIDES, "evaluate=false", "trainer.validations=0"]


def start_fit(runs: Path, *overrides: str) -> Command:
    """The command fit in a fork with its own process group, after its third step."""
    command = start("fit", *overrides, f"runs_dir={runs}")
    while not any(len(text(path).splitlines()) > 3 for path in runs.rglob("metrics.csv")):
        assert command.poll() is None, command.output()
        time.sleep(0.02)
    return command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    fit.main([*EVALUATED, f"runs_dir={runs}"])
    return runs


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR2, 140, marks=pytest.mark.slow)],
)
def test_a_run_that_is_stopped_resumes_exactly(
    number: signal.Signals, code: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        wait_for_signals_at(patch, 3)
        command = start_fit(tmp_path, *EVALUATED)
    command.send_signal(number)
    _, errors = command.communicate()
    assert command.returncode == code, errors
    last = torch.load(find_run(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["eltlab"]["images_seen"] == 24
    message = f"stopped by {number.name} at 24 images; the same command resumes"
    assert errors.splitlines()[-1].startswith(message)
    assert "Traceback" not in errors
    before = signal.getsignal(number)
    fit.main([*EVALUATED, f"runs_dir={tmp_path}"])
    assert signal.getsignal(number) == before
    assert_same(weights_rows_metrics(undisturbed), weights_rows_metrics(tmp_path))


def test_ctrl_c_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_signals_at(monkeypatch, 3)
    command = start_fit(tmp_path, *QUIET)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate()
    assert command.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; the same command resumes")
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ctrl_c_ends_the_real_command(tmp_path: Path) -> None:
    overrides = [*QUIET, "budget.images=10000000", f"runs_dir={tmp_path}"]
    command = [sys.executable, "-m", "eltlab.fit", *overrides]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: list(tmp_path.rglob("metrics.csv")), process=process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; the same command resumes")
    assert "Traceback" not in errors


def test_a_signal_to_all_processes_does_not_end_those_that_decode(tmp_path: Path) -> None:
    """SLURM signals every process of a job."""
    for n in range(32):
        path = tmp_path / "data" / "train" / str(n % 2) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(path)
    overrides = [*QUIET, "objective=flow", "data=images", f"data.root={tmp_path / 'data'}"]
    overrides += ["data.size=8", "data.patch=4", "data.in_memory=false", "data.workers=1"]
    command = start_fit(tmp_path / "runs", *overrides, "budget.images=10000000")
    os.killpg(command.pid, signal.SIGTERM)
    _, errors = command.communicate()
    assert command.returncode == 143, errors
    assert (find_run(tmp_path / "runs") / "checkpoints" / "last.ckpt").is_file()
    assert "Traceback" not in errors


def vote(rank: int, folder: Path) -> None:
    """Rank 1 requests a stop from its third step on; writes the answer of each step to a file."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    agreement = Agreement()
    answers = [agreement.agree(rank == 1 and step >= 3) for step in range(1, 6)]
    answers.append(agreement.wait_for_answer())
    (folder / str(rank)).write_text(str([int(each) for each in answers]))
    torch.distributed.destroy_process_group()


def test_ranks_agree_on_the_step_after_which_they_stop(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(vote, (tmp_path,), nprocs=2, start_method="fork")
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "[0, 0, 0, 1, 1, 1]"
