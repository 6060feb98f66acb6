"""Real processes over gloo train and sample as one does, at any world size and number of micro-batches.

They are forked from this one, which has torch imported already, with the environment that a launcher gives
them; the last tests start the real commands.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
from support.rank_runs import (
    ARMS,
    SMALL,
    SPREAD,
    assert_same_run,
    fitted,
    processes,
    stop_at,
    weights,
)
from support.tiny_run import find_run, tiny

from eltlab import evaluate, fit
from eltlab.common import collectives, files, ranks
from eltlab.generation.masked import Masked
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.load_model import load
from eltlab.runs.run_folder import Run

pytestmark = pytest.mark.integration


def slow(*values: str):
    return pytest.param(*values, marks=pytest.mark.slow)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "spread"),
    [
        *(("masked", spread) for spread in ("ddp", "fsdp")),
        *(slow("masked", spread) for spread in SPREAD if spread not in ("alone", "ddp", "fsdp")),
        *(slow("diffusion", spread) for spread in ("ddp", "fsdp")),
        ("random depth", "ddp, accumulation, recomputation"),  # some steps leave parameters unused
        slow("random depth", "fsdp"),
    ],
)
def test_devices_and_micro_batches_train_as_one_process_does(
    trained_on_ranks: Callable[..., Path], arm: str, spread: str
) -> None:
    one, other = trained_on_ranks(arm), trained_on_ranks(arm, spread)
    assert other.name == one.name  # the same run id: world size is not part of it
    assert_same_run(one, other)
    assert len(list((other / "samples").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("arm", "strategy"), [("masked", "ddp"), slow("diffusion", "ddp"), slow("diffusion", "fsdp")]
)
def test_compiled_blocks_train_to_the_same_losses(
    trained_on_ranks: Callable[..., Path], tmp_path: Path, arm: str, strategy: str
) -> None:
    """Dynamo makes the graphs and the eager backend runs them, which needs no compiler."""
    settings = ["trainer.compile=true", f"trainer.strategy={strategy}"]

    def work() -> None:
        torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]
        fit.main([*SMALL, f"runs_dir={tmp_path}", *ARMS[arm], *settings])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

    assert processes(2, work) == [0, 0]
    assert_same_run(trained_on_ranks(arm), find_run(tmp_path))


def test_a_run_resumes_at_another_world_size(trained_on_ranks: Callable[..., Path], tmp_path: Path) -> None:
    """One process, two sharded, two replicated, one with micro-batches: equal to a run never stopped."""
    legs = [
        (2, 1, ()),
        (4, 2, ("trainer.strategy=fsdp",)),
        (6, 2, ()),
        (8, 1, ("trainer.accumulate=2",)),
    ]
    for step, world, settings in legs:

        def leg(step: int = step, settings: tuple = settings) -> None:
            stop_at(step)
            overrides = [*ARMS["masked"], "trainer.checkpoint_seconds=0", *settings]
            fit.main([*SMALL, f"runs_dir={tmp_path}", *overrides])

        assert processes(world, leg) == [0] * world
        path = find_run(tmp_path) / "checkpoints" / "last.ckpt"
        assert read_checkpoint(path)["eltlab"]["step"] == step
    assert_same_run(trained_on_ranks("masked"), find_run(tmp_path))


@pytest.mark.parametrize("strategy", [slow("ddp"), "fsdp"])
def test_a_bad_gradient_of_one_device_is_skipped_by_all(tmp_path: Path, strategy: str) -> None:
    honest, calls = Masked.losses, [0]

    def losses(self, pred, target):
        calls[0] += 1  # twice per step with ILSD
        spoiled = ranks.rank() == 1 and calls[0] == 5
        return honest(self, pred, target) * (float("nan") if spoiled else 1)

    def work() -> None:
        Masked.losses = losses  # type: ignore[method-assign]
        quiet = ["trainer.validations=0", "trainer.grids=0"]
        fit.main([*SMALL, f"runs_dir={tmp_path}", f"trainer.strategy={strategy}", *quiet])

    assert processes(2, work) == [0, 0]
    checkpoint = read_checkpoint(find_run(tmp_path) / "checkpoints" / "last.ckpt")
    assert checkpoint["eltlab"]["skipped"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    optimizer = checkpoint["optimizer_states"][0]["state"].values()
    assert {int(state["step"]) for state in optimizer} == {7}


def test_shards_compute_in_bf16_and_reduce_in_float32(tmp_path: Path) -> None:
    half = ["objective=diffusion", "trainer.precision=bf16-mixed", "optim.lr=0.0001"]
    half += ["budget.images=32"]
    one = fitted(tmp_path / "one", 1, *half)
    other = fitted(tmp_path / "two", 2, *half, "trainer.strategy=fsdp")
    assert_same_run(one, other, tolerance=0.03)
    assert {value.dtype for value in weights(other).values()} == {torch.float32}


def test_a_sharded_checkpoint_equals_that_of_a_single_device(trained_on_ranks: Callable[..., Path]) -> None:
    """Key by key, also in the optimizer state."""
    runs = [trained_on_ranks("masked", spread) for spread in ("alone", "fsdp")]
    left, right = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs)
    assert list(left["state_dict"]) == list(right["state_dict"])
    states = [checkpoint["optimizer_states"][0] for checkpoint in (left, right)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for key, state in states[0]["state"].items():
        assert state.keys() == states[1]["state"][key].keys()
        for name, value in state.items():
            torch.testing.assert_close(value, states[1]["state"][key][name], rtol=1e-4, atol=1e-7)


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_over_processes_draws_the_same_samples(
    trained_on_ranks: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained_on_ranks("masked")
    labels = torch.arange(20) % 10  # batches of 8, 8 and 4

    def draw() -> None:
        collectives.init_process_group(torch.device("cpu"))
        drawn = load(run).sample_all(labels, 3, 5, "test")
        assert (drawn is None) == (ranks.rank() > 0)
        if drawn is not None:
            torch.save(drawn._asdict(), tmp_path / f"{ranks.world_size()}.pt")

    found = []
    for world in (1, 2, 3):
        assert processes(world, draw) == [0] * world
        found.append(torch.load(tmp_path / f"{world}.pt"))
    assert torch.equal(found[0]["images"], load(run).sample(labels, loops=3, seed=5))
    for drawn in found[1:]:
        assert torch.equal(drawn["images"], found[0]["images"])
        assert drawn["updates"] == found[0]["updates"] and drawn["depths"] == found[0]["depths"]


@pytest.mark.parametrize("arm", ["masked", slow("diffusion")])
def test_rows_of_two_processes_are_those_of_one(trained_on_ranks: Callable[..., Path], arm: str) -> None:
    run = trained_on_ranks(arm)
    command = [f"run={run}", "loops=[1,4to1]", "sampler.guidance=2"]
    written = []
    for world in (2, 1):
        assert processes(world, lambda: evaluate.main(command)) == [0] * world
        written.append([json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()])
        (run / "rows.jsonl").unlink()
    for two, one in zip(*written, strict=True):
        assert two.pop("created") and one.pop("created")
        assert two == one


def test_ranks_wait_for_the_main_process_but_not_for_a_step_that_hangs() -> None:
    def work() -> None:
        collectives.WAIT = timedelta(seconds=2)
        collectives.init_process_group(torch.device("cpu"))
        if ranks.is_main_process():
            time.sleep(3)
        collectives.barrier()
        if ranks.is_main_process():
            time.sleep(3)
        assert collectives.broadcast(7 if ranks.is_main_process() else None) == 7
        if not ranks.is_main_process():
            time.sleep(5)  # simulates a step that hangs
            return
        with pytest.raises(RuntimeError, match=r"[Tt]imed out"):
            collectives.all_reduce_mean(torch.ones(1))

    assert processes(2, work) == [0, 0]


# --- the launcher ---------------------------------------------------------------------------------


def start_launcher(*overrides: str) -> subprocess.Popen:
    """Starts the real command fit on two devices, which torchrun's agent starts."""
    command = [sys.executable, "-m", "eltlab.fit", *SMALL, *overrides, "trainer.devices=2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_launcher_stops_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    long = ["budget.images=8000000", "trainer.checkpoint_seconds=0.1"]
    process = start_launcher(*long, f"runs_dir={tmp_path}")
    while not list(tmp_path.rglob("last.ckpt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 128 + number and out == ""
    assert err.count("fit: ") == 1  # only the main process prints
    if number == signal.SIGINT:
        assert err.count("stopped; the same command resumes from the last checkpoint") == 1
    assert "Traceback" not in err and "torch" not in err and "rank" not in err


def test_a_mistake_ends_all_processes_with_its_message_and_its_code(tmp_path: Path) -> None:
    """Only the main process raises this error: the run is locked."""
    run = Run.of(tiny(*SMALL, f"runs_dir={tmp_path}"))
    with files.file_lock(run.folder / ".lock"):
        process = start_launcher(f"runs_dir={tmp_path}")
        out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    assert err.count("error: run ") == 1 and "another process is training it" in err
    assert "Traceback" not in err and "Error" not in err


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eltlab.fit"]


@pytest.mark.slow  # three processes that import torch
@pytest.mark.parametrize(
    "command", [TORCHRUN, ["eltlab.fit", "trainer.devices=2"]], ids=["torchrun", "trainer.devices"]
)
def test_the_real_commands_train_on_two_devices(
    trained_on_ranks: Callable[..., Path], tmp_path: Path, command: list[str]
) -> None:
    real = [sys.executable, "-m", *command, *SMALL, f"runs_dir={tmp_path}"]
    done = subprocess.run(real, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run: {find_run(tmp_path)}\n"
    assert_same_run(trained_on_ranks("masked"), find_run(tmp_path))
