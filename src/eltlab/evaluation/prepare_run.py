"""Prepares a run: whatever could stop it is checked here, before anything is trained or written."""

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eltlab.common import collectives, ranks
from eltlab.common.errors import UserError
from eltlab.common.machine_facts import find_machine
from eltlab.config.cost.bill import bill_lines
from eltlab.config.devices import adopt_launcher_devices
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import Request, default_requests, missing
from eltlab.runs.run_folder import Run

if TYPE_CHECKING:
    import torch

    from eltlab.data.build import TrainingData
    from eltlab.data.image_sources import Splits


@dataclass(frozen=True)
class Prepared:
    """A checked run with all that training and evaluation need."""

    run: Run
    config: Config  # run.config, possibly with other sampler.* and metrics.* keys; of the first request
    device: "torch.device"
    precision: str  # Lightning's name
    data: "TrainingData | None"  # None: this process only samples
    splits: "Splits | None"  # train and test images; None: this process measures nothing
    requests: list[Request]  # to sample and measure
    seed: int  # of the sampling noise


def prepare(config: Config) -> Prepared:
    """The run of a configuration, checked: devices, packages, data, and the metrics of its schedules.
    Prints what the run costs. Raises UserError; nothing has been written by then."""
    adopt_launcher_devices(config)
    print(f"fit: {config.name}, seed {config.seed}", file=sys.stderr, flush=True)

    from eltlab.data.build import build_data

    check_wandb(config)
    device, precision = _start_device(config)
    print(*bill_lines(config, find_machine(device.type, precision)), sep="\n", file=sys.stderr)
    data, requests = build_data(config), default_requests(config)
    splits = data.images(config) if requests and ranks.is_main_process() else None
    run = Run.of(config)
    run.refuse_old_start()
    prepared = Prepared(run, config, device, precision, data, splits, requests, config.seed)
    _check_evaluation(prepared)
    return prepared


def prepare_evaluation(run: Run, requests: list[Request], seed: int) -> Prepared:
    """`prepare` for the requested rows of a trained run. Raises UserError."""
    config = requests[0].config
    adopt_launcher_devices(config)

    from eltlab.data.build import load_data

    device, precision = _start_device(config)
    data = load_data(config) if ranks.is_main_process() else None
    splits = None if data is None else data.images(config)
    prepared = Prepared(run, config, device, precision, data, splits, requests, seed)
    _check_evaluation(prepared)
    return prepared


def _start_device(config: Config) -> "tuple[torch.device, str]":
    """Device and precision, checked, with all processes of the run connected. Raises UserError."""
    from eltlab.common.torch_device import choose_device, choose_precision

    device = choose_device(config.trainer.accelerator)
    precision = choose_precision(config.trainer.precision, device)
    collectives.init_process_group(device)
    return device, precision


def _check_evaluation(prepared: Prepared) -> None:
    """Raises UserError if the metrics cannot be computed; prints how long slow ones will take."""
    from eltlab.evaluation.metrics import check_metrics

    if prepared.splits is None:
        return
    config = prepared.config
    left = len(missing(prepared.run, prepared.requests, prepared.seed, config.images))
    # Masked models and models of encoded sets have a tokenizer, whose reconstructions are measured too.
    has_tokenizer = config.objective.INPUTS == "tokens" or config.data.kind != "pixels"
    draws = left + has_tokenizer if left else 0
    check_metrics(config, *prepared.splits, draws, prepared.device)


def check_wandb(config: Config) -> None:
    """Raises UserError if trainer.wandb is on and the package is not installed."""
    spec = importlib.util.find_spec("wandb")
    # A folder named wandb, which its offline runs create, is found as a package without an origin.
    if config.trainer.wandb and (spec is None or spec.origin is None):
        raise UserError(
            "trainer.wandb=true: the package wandb is not installed; pip install wandb, or remove the key"
        )
