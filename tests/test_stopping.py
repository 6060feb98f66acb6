"""SIGTERM and SIGUSR2: a run stops after its step with a checkpoint, and resumes exactly."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from conftest import TINY
from PIL import Image
from test_runs import assert_same, folder, outcome

from eltlab import fit
from eltlab.common.command import run_command
from eltlab.common.signals import Requests, Stopped, listening
from eltlab.training.callbacks import Agreement

# A few seconds of training, with checkpoints only at the end and at a signal.
OVERRIDES = [*TINY, "budget.images=2400", "trainer.checkpoint_seconds=1000", "trainer.log_every=10"]
OVERRIDES += ["trainer.validations=4", "trainer.grids=0", "model.dropout=0.1", "evaluate_loops=[4]"]


def start_fit(runs: Path, overrides: list[str], log: Path) -> int:
    """The pid of the command fit, run in a fork with its own process group and past its first steps."""
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.stdout = sys.stderr = log.open("w", buffering=1)
        sys.argv = ["fit", *overrides, f"runs_dir={runs}"]
        try:
            run_command(fit.main, fit.usage)
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code)
        finally:
            os._exit(1)
    while not any(len(p.read_text().splitlines()) > 2 for p in runs.rglob("metrics.csv")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.02)
    return child


def wait_for_exit(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    fit.main([*OVERRIDES, f"runs_dir={runs}"])
    return runs


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR2, 140)])
def test_a_run_that_is_stopped_resumes_exactly(
    number: signal.Signals, code: int, undisturbed: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    child = start_fit(tmp_path, OVERRIDES, log)
    os.kill(child, number)
    assert wait_for_exit(child) == code, log.read_text()
    last = torch.load(folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    seen = last["eltlab"]["images_seen"]
    assert 0 < seen < 2400
    said = f"stopped by {number.name} at {seen:,} images; the same command resumes"
    assert log.read_text().splitlines()[-1].startswith(said)
    assert "Traceback" not in log.read_text()
    before = signal.getsignal(number)
    fit.main([*OVERRIDES, f"runs_dir={tmp_path}"])
    assert signal.getsignal(number) == before
    assert_same(weights_rows_metrics(undisturbed), weights_rows_metrics(tmp_path))


def weights_rows_metrics(runs: Path) -> tuple:
    checkpoint, rows, metrics = outcome(runs)
    for row in rows:  # trainer keys may differ: they are not part of the run id
        for key in [key for key in row["cfg"] if key.startswith("trainer.")]:
            row["cfg"].pop(key)
    validation = (folder(runs) / "validation.csv").read_text()
    return checkpoint["state_dict"], checkpoint["optimizer_states"], rows, metrics, validation


def test_a_signal_to_all_processes_does_not_end_those_that_decode(tmp_path: Path) -> None:
    """SLURM signals every process of a job."""
    for n in range(32):
        path = tmp_path / "data" / "train" / str(n % 2) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(path)
    overrides = [*OVERRIDES, "objective=flow", "data=images", f"data.root={tmp_path / 'data'}"]
    overrides += ["data.size=8", "data.patch=4", "data.in_memory=false", "data.workers=1"]
    overrides += ["evaluate=false", "trainer.validations=0"]
    log = tmp_path / "log"
    child = start_fit(tmp_path / "runs", overrides, log)
    os.killpg(child, signal.SIGTERM)
    assert wait_for_exit(child) == 143, log.read_text()
    assert (folder(tmp_path / "runs") / "checkpoints" / "last.ckpt").is_file()
    assert "Traceback" not in log.read_text()


def test_outside_training_a_signal_ends_the_block_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped by SIGTERM") as stopped, listening():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143 and signal.getsignal(signal.SIGTERM) == before


def test_in_a_step_a_signal_is_noted_and_the_first_one_counts() -> None:
    with listening() as requests:
        requests.deferred = True
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGUSR2 here"):
            requests.raise_if_stopped(" here")
    Requests().raise_if_stopped()  # no signal came


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with listening():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


# --- many ranks -----------------------------------------------------------------------------------


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


def test_one_rank_is_answered_at_once() -> None:
    agreement = Agreement()
    assert not agreement.agree(False) and agreement.agree(True) and not agreement.wait_for_answer()
