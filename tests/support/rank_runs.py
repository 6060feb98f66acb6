"""Runs on several ranks, in processes forked from this one, and comparisons of runs."""

import csv
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import eltlab.training.sharding  # noqa: F401  # imported before any fork, for speed
from eltlab import fit
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.studies.worker import preload
from eltlab.training.callbacks import CheckpointWriter
from support.postgres import free_port
from support.tiny_run import TINY, find_run, tiny

SMALL = [
    *TINY,
    "model.dropout=0",
    "optim.lr=0.001",
    "optim.warmup=0",
    "trainer.log_every=1",
    "trainer.grids=1",
    "trainer.validations=2",
    "evaluate=false",
]


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
    return find_run(runs)


def rows(path: Path) -> list[list[float]]:
    """The numbers of a CSV file except for the speed; −1 for an empty field."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
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


@pytest.fixture(scope="session")
def trained_on_ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The run folder of an arm, trained as a key of SPREAD says. Each is trained once."""
    preload()
    tiny()  # imports what the forks use, once

    @cache
    def run(arm: str, spread: str = "alone") -> Path:
        world, settings = SPREAD[spread]
        return fitted(tmp_path_factory.mktemp("runs"), world, *ARMS[arm], *settings)

    return run


def stop_at(step: int) -> None:
    """Makes this process exit after it has checkpointed this step."""
    save = CheckpointWriter.after_step

    def after_step(self, trainer, module) -> None:
        save(self, trainer, module)
        if module.step == step:
            os._exit(0)

    CheckpointWriter.after_step = after_step  # type: ignore[method-assign]
