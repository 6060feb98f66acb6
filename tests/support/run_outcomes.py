"""What a run leaves behind, compared to the last bit, and runs in forks that a signal may kill."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from eltlab import fit
from eltlab.training.callbacks import CheckpointWriter
from eltlab.training.looped_module import LoopedModule
from support.tiny_run import TINY, find_run

# Twenty steps of two loops, with a checkpoint after each of them.
TWENTY_STEPS = [
    *TINY,
    "model.dropout=0.1",
    "loops=2",
    "budget.images=160",
    "trainer.checkpoint_seconds=0",
    "trainer.log_every=4",
    "trainer.grids=2",
]
VOLATILE = (
    "created",
    "code",
    "evaluated_code",
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
)


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Runs work in a child process; returns its exit status, negative if a signal killed it.

    kill_after: seconds of CPU time after which the kernel kills the child. Wall-clock seconds would end
    after a run that is faster than the one they were measured on, as on a machine that has become idle.
    """
    child = os.fork()
    if child == 0:
        if kill_after is not None:
            signal.setitimer(signal.ITIMER_PROF, kill_after)  # SIGPROF ends it without a handler
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(runs: Path) -> tuple[dict, list[dict], list[list[str]]]:
    """Checkpoint, rows and metrics of the only run in a folder, without values that depend on time."""
    run = find_run(runs)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        for key in VOLATILE:
            row.pop(key)
        row["cfg"].pop("runs_dir")
        # Depends on the command that wrote the row first; the column `samples` does not.
        row["cfg"].pop("metrics.samples")
    with (run / "metrics.csv").open(newline="") as file:
        metrics = [line[:-1] for line in csv.reader(file)]
    return checkpoint, sorted(rows, key=str), metrics


def weights_rows_metrics(runs: Path) -> tuple:
    """As `outcome`, for runs whose trainer keys differ, with the validation and without counters of time."""
    checkpoint, rows, metrics = outcome(runs)
    for row in rows:  # trainer keys are not part of the run id
        for key in [key for key in row["cfg"] if key.startswith("trainer.")]:
            row["cfg"].pop(key)
    validation = (find_run(runs) / "validation.csv").read_text()
    return checkpoint["state_dict"], checkpoint["optimizer_states"], rows, metrics, validation


def assert_same(a: object, b: object) -> None:
    """Asserts that values are equal to the last bit, tensors included."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_outcome(one: Path, other: Path) -> None:
    """Asserts that the runs in two folders have the same weights, moments, steps, rows and metrics."""
    (first, rows, metrics), (second, other_rows, other_metrics) = outcome(one), outcome(other)
    assert_same(first["state_dict"], second["state_dict"])
    assert_same(first["optimizer_states"], second["optimizer_states"])
    assert first["eltlab"]["step"] == second["eltlab"]["step"] == 20
    assert rows == other_rows
    assert metrics == other_metrics


@pytest.fixture(scope="session")
def undisturbed_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The runs folder of TWENTY_STEPS with an objective, trained once and not interrupted."""

    @cache
    def train(objective: str) -> Path:
        runs = tmp_path_factory.mktemp("undisturbed")
        fit.main([*TWENTY_STEPS, f"objective={objective}", f"runs_dir={runs}"])
        return runs

    return train


def wait_for_signals_at(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Makes runs of this process and of its forks wait after these steps until a signal has come."""
    after_step = CheckpointWriter.after_step

    def waiting(self: CheckpointWriter, trainer: Trainer, module: LoopedModule) -> None:
        while module.step in steps and self.signals.number is None:
            time.sleep(0.01)
        after_step(self, trainer, module)

    monkeypatch.setattr(CheckpointWriter, "after_step", waiting)
