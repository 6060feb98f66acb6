"""Real processes over gloo train and sample as one does, at any world size and number of micro-batches.

Most of them are forked from this one, which has torch imported already, with the environment that a
launcher would give them; the last tests start the commands themselves.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from conftest import TINY, tiny
from studies import opened

import eltlab.training.sharding  # noqa: F401  # imported before any fork, for speed
from eltlab import evaluate, fit
from eltlab.common import collectives, files, ranks
from eltlab.common.errors import UserError
from eltlab.common.seeds import BatchSlice, slice_of_this_process
from eltlab.config import devices
from eltlab.data.batches import BatchLoader
from eltlab.generation.masked import Masked
from eltlab.launch import exit_code
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.load_model import load
from eltlab.runs.run_folder import Run
from eltlab.studies.study import grid_trials
from eltlab.studies.worker import preload
from eltlab.training.callbacks import CheckpointWriter

SMALL = [
    *TINY,
    "model.dropout=0",
    "optim.lr=0.001",
    "optim.warmup_images=0",
    "trainer.log_every=1",
    "trainer.grids=1",
    "trainer.validations=2",
    "evaluate=false",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def processes(world: int, work: Callable[[], None]) -> list[int]:
    """The exit codes of `work` in this many processes, started as torchrun would start them."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    size = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update(address | size, RANK=str(rank), LOCAL_RANK=str(rank))
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
            try:
                work()
            except BaseException as error:
                os.write(2, f"rank {rank}: {error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def fitted(runs: Path, world: int, *overrides: str) -> Path:
    """The folder of a run trained by this many processes."""
    command = [*SMALL, f"runs_dir={runs}", *overrides]
    assert processes(world, lambda: fit.main(command)) == [0] * world
    return folder(runs)


def folder(runs: Path) -> Path:
    [config] = runs.rglob("config.yaml")
    return config.parent


def rows(path: Path) -> list[list[float]]:
    """The numbers of a CSV file except for the speed; −1 for an empty field."""
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file)]
    names = [name for name in lines[0] if name != "images_per_second"]
    return [[float(line[name] or -1) for name in names] for line in lines]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Live and averaged weights of a checkpoint, without the bias of the keys. Attention does not depend on
    that bias, so its gradient is rounding error, which Adam scales up to the size of other updates."""
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    for key, value in state.items():
        if key.endswith("qkv.bias"):
            query, _, values = value.chunk(3)
            state[key] = torch.cat([query, values])
    return state


def assert_same_run(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """Compares losses, validation, live and averaged weights."""
    for name in ("metrics.csv", "validation.csv"):
        left, right = torch.tensor(rows(one / name)), torch.tensor(rows(other / name))
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=tolerance, atol=tolerance)


# --- training -------------------------------------------------------------------------------------

ARMS = {
    "masked": ("objective=masked",),
    "diffusion": ("objective=diffusion",),
    # The injection has no gradient in steps of one loop.
    "random depth": ("objective=masked", "supervision=random_depth", "model.inject_input=true"),
}
SPREAD: dict[str, tuple[int, tuple[str, ...]]] = {
    "alone": (1, ()),
    "ddp": (2, ()),
    "fsdp": (2, ("trainer.strategy=fsdp",)),
    "accumulation": (1, ("trainer.accumulate=2",)),
    "ddp, accumulation, recomputation": (2, ("trainer.accumulate=2", "trainer.recompute=true")),
    "fsdp, accumulation, recomputation": (
        2,
        ("trainer.strategy=fsdp", "trainer.accumulate=2", "trainer.recompute=true"),
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run folder of an arm, trained as a key of SPREAD says. Each is trained once."""
    preload()
    tiny()  # imports what the forks use, once

    @cache
    def run(arm: str, spread: str = "alone") -> Path:
        world, settings = SPREAD[spread]
        return fitted(tmp_path_factory.mktemp("runs"), world, *ARMS[arm], *settings)

    return run


@pytest.mark.parametrize(
    ("arm", "spread"),
    [
        *(("masked", spread) for spread in SPREAD if spread != "alone"),
        *(("diffusion", spread) for spread in ("ddp", "fsdp")),
        *(("random depth", spread) for spread in ("ddp, accumulation, recomputation", "fsdp")),
    ],
)
def test_devices_and_micro_batches_train_as_one_process_does(
    trained: Callable[..., Path], arm: str, spread: str
) -> None:
    one, other = trained(arm), trained(arm, spread)
    assert other.name == one.name  # the same run id: world size is not part of it
    assert_same_run(one, other)
    assert len(list((other / "samples").glob("*.png"))) == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_compiled_blocks_train_to_the_same_losses(
    trained: Callable[..., Path], tmp_path: Path, strategy: str
) -> None:
    """Dynamo makes the graphs and the eager backend runs them, which needs no compiler."""
    settings = ["trainer.compile=true", f"trainer.strategy={strategy}"]

    def work() -> None:
        torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]
        fit.main([*SMALL, f"runs_dir={tmp_path}", *ARMS["diffusion"], *settings])
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0

    assert processes(2, work) == [0, 0]
    assert_same_run(trained("diffusion"), folder(tmp_path))


def stop_at(step: int) -> None:
    """Makes this process exit after it has checkpointed this step."""
    save = CheckpointWriter.after_step

    def after_step(self, trainer, module) -> None:
        save(self, trainer, module)
        if module.step == step:
            os._exit(0)

    CheckpointWriter.after_step = after_step  # type: ignore[method-assign]


def test_a_run_resumes_at_another_world_size(trained: Callable[..., Path], tmp_path: Path) -> None:
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
        path = folder(tmp_path) / "checkpoints" / "last.ckpt"
        assert read_checkpoint(path)["eltlab"]["step"] == step
    assert_same_run(trained("masked"), folder(tmp_path))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_bad_gradient_of_one_device_is_skipped_by_all(tmp_path: Path, strategy: str) -> None:
    honest, calls = Masked.loss, [0]

    def loss(self, pred, target):
        calls[0] += 1  # twice per step with ILSD
        spoiled = ranks.rank() == 1 and calls[0] == 5
        return honest(self, pred, target) * (float("nan") if spoiled else 1)

    def work() -> None:
        Masked.loss = loss  # type: ignore[method-assign]
        quiet = ["trainer.validations=0", "trainer.grids=0"]
        fit.main([*SMALL, f"runs_dir={tmp_path}", f"trainer.strategy={strategy}", *quiet])

    assert processes(2, work) == [0, 0]
    checkpoint = read_checkpoint(folder(tmp_path) / "checkpoints" / "last.ckpt")
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


def test_a_sharded_checkpoint_equals_that_of_a_single_device(trained: Callable[..., Path]) -> None:
    """Key by key, also in the optimizer state."""
    runs = [trained("masked", spread) for spread in ("alone", "fsdp")]
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
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    run = trained("masked")
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


def test_rows_of_two_processes_are_those_of_one(trained: Callable[..., Path]) -> None:
    run = trained("diffusion")
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


# --- slices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_the_batches_of_all_slices_are_the_whole_batches(flip: bool) -> None:
    images = torch.arange(21 * 6, dtype=torch.uint8).view(21, 1, 2, 3)
    split = {"images": images, "labels": torch.arange(21)}

    def batches(batch_slice: BatchSlice) -> list:
        return list(BatchLoader(split, 8, 1, 2, 6, flip, batch_slice=batch_slice))

    whole = batches(BatchSlice())
    ranks = [batches(BatchSlice(rank, 2, 0, 2)) for rank in range(2)]
    assert len(whole) == 4 and [len(taken) for taken in ranks] == [8, 8]
    for step, batch in enumerate(whole):
        parts = [ranks[rank][2 * step + micro_batch] for micro_batch in range(2) for rank in range(2)]
        for all_rows, of_parts in zip(batch, zip(*parts, strict=True), strict=True):
            assert torch.equal(all_rows, torch.cat(of_parts))


def test_a_batch_that_devices_do_not_divide_is_an_error_with_its_fix() -> None:
    with pytest.raises(UserError, match="6 does not divide batch_size=8") as error:
        tiny("trainer.devices=3", "trainer.accumulate=2")
    assert str(error.value).endswith("make it one of 1, 2, 4, 8")


def test_the_launcher_decides_how_many_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(key, str(value))
    config = tiny()
    devices.adopt_launcher_devices(config)
    assert (config.trainer.devices, config.trainer.nodes) == (2, 2)
    assert (
        slice_of_this_process(config.trainer.accumulate) == BatchSlice(3, 4) and not ranks.is_main_process()
    )
    devices.adopt_launcher_devices(tiny("trainer.devices=2", "trainer.nodes=2"))
    with pytest.raises(UserError, match="started 2 processes on each of 2 nodes"):
        devices.adopt_launcher_devices(tiny("trainer.devices=4"))
    with pytest.raises(UserError, match="8 does not divide batch_size=12"):
        devices.adopt_launcher_devices(tiny("batch_size=12", "trainer.accumulate=2"))


def test_a_trial_of_a_study_runs_on_one_device(tmp_path: Path) -> None:
    study = opened(tmp_path, overrides=["trainer.devices=2"])
    with pytest.raises(UserError, match="a trial of a study runs on one device; remove both keys"):
        grid_trials(study)


def test_several_nodes_need_torchrun() -> None:
    with pytest.raises(UserError, match=r"trainer\.nodes=2: start the command on every node"):
        fit.main([*SMALL, "trainer.nodes=2"])


# --- the commands ---------------------------------------------------------------------------------

PYTHON = [sys.executable, "-m"]


def command(*arguments: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*PYTHON, *arguments], **pipes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_launcher_stops_all_processes(tmp_path: Path, number: signal.Signals) -> None:
    long = [*SMALL, f"runs_dir={tmp_path}", "budget.images=8000000", "trainer.devices=2"]
    long.append("trainer.checkpoint_seconds=0.1")
    process = command("eltlab.fit", *long)
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
        process = command("eltlab.fit", *SMALL, f"runs_dir={tmp_path}", "trainer.devices=2")
        out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    assert err.count("error: run ") == 1 and "another process is training it" in err
    assert "Traceback" not in err and "Error" not in err


@pytest.mark.slow  # starts three more processes
def test_torchrun_starts_fit(trained: Callable[..., Path], tmp_path: Path) -> None:
    launcher = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "eltlab.fit",
    ]
    process = command(*launcher, *SMALL, f"runs_dir={tmp_path}")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out == f"run: {folder(tmp_path)}\n"
    assert_same_run(trained("masked"), folder(tmp_path))


def test_the_exit_code_is_that_of_the_process_that_failed() -> None:
    assert exit_code([-15, 2]) == 2 and exit_code([-9]) == 137
