"""Prepares a run: whatever could stop it is checked here, before anything is trained or written."""

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eltlab.common import distributed, ranks
from eltlab.common.errors import UserError
from eltlab.common.machine import find_machine
from eltlab.config.cost.bill_table import bill_lines
from eltlab.config.devices import adopt_launcher_devices
from eltlab.config.schedules import LoopSchedule
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import default_schedules, missing
from eltlab.runs.run_folder import Run

if TYPE_CHECKING:
    import torch

    from eltlab.data.build import TrainingData
    from eltlab.data.sources import Splits


@dataclass(frozen=True)
class Prepared:
    """A checked run with all that training and evaluation need."""

    run: Run
    config: Config  # run.config, or that with other sampler.* and metrics.* keys
    device: "torch.device"
    precision: str  # Lightning's name
    data: "TrainingData | None"  # None: the run is only evaluated
    splits: (
        "Splits | None"  # train and test images that samples are compared with; main process only
    )
    schedules: list[LoopSchedule]  # to sample and measure
    seed: int  # of the sampling noise


def prepare(config: Config) -> Prepared:
    """The run of a configuration, checked: devices, packages, data, and the metrics of its schedules.

    Prints what the run costs. Raises UserError; nothing has been written by then.
    """
    adopt_launcher_devices(config)
    print(f"fit: {config.name}, seed {config.seed}", file=sys.stderr, flush=True)

    from eltlab.common.torch_device import choose_device, choose_precision
    from eltlab.data.build import build_data

    check_wandb(config)
    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    distributed.init_process_group(device)
    print(*bill_lines(config, find_machine(device.type, precision)), sep="\n", file=sys.stderr)
    run, data, schedules = Run.of(config), build_data(config), default_schedules(config)
    splits = None
    if schedules and ranks.is_main_process():  # which alone measures
        splits = data.images(config)
        check_evaluation(run, config, splits, device, schedules, config.seed)
    return Prepared(run, config, device, precision, data, splits, schedules, config.seed)


def prepare_evaluation(
    run: Run, config: Config, schedules: list[LoopSchedule], seed: int
) -> Prepared:
    """`prepare` for a trained run, which needs no training data. Raises UserError."""
    adopt_launcher_devices(config)

    from eltlab.common.torch_device import choose_device, choose_precision
    from eltlab.data.build import build_splits

    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    distributed.init_process_group(device)
    splits = None
    if ranks.is_main_process():
        splits = build_splits(config)
        check_evaluation(run, config, splits, device, schedules, seed)
    return Prepared(run, config, device, precision, None, splits, schedules, seed)


def check_evaluation(
    run: Run,
    config: Config,
    splits: "Splits",
    device: "torch.device",
    schedules: list[LoopSchedule],
    seed: int,
) -> None:
    """Raises UserError if the metrics cannot be computed; says how long slow ones will take."""
    from eltlab.evaluation.metrics import check_metrics

    left = len(missing(run, config, schedules, seed, config.images))
    # Masked models and models of encoded sets have a tokenizer, whose reconstructions are measured too.
    has_tokenizer = config.objective.INPUTS == "tokens" or config.data.kind != "pixels"
    draws = left + has_tokenizer if left else 0
    check_metrics(config, len(splits[0]), draws, device)


def check_wandb(config: Config) -> None:
    """Raises UserError if trainer.wandb is on and the package is not installed."""
    spec = importlib.util.find_spec("wandb")
    # A folder named wandb, as its offline runs leave, is a package without an origin.
    if config.trainer.wandb and (spec is None or spec.origin is None):
        raise UserError(
            "trainer.wandb=true: the package wandb is not installed; pip install wandb, or remove the key"
        )
