"""The path of a run: prepare, train, evaluate."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from eltlab.common import distributed, ranks
from eltlab.common.errors import UserError
from eltlab.common.machine import find_machine
from eltlab.common.signals import Requests, listening
from eltlab.config import devices
from eltlab.config.cost.bill_table import bill_lines
from eltlab.config.schema import Config

if TYPE_CHECKING:
    import torch

    from eltlab.data.build import TrainingData
    from eltlab.runs.run import Run


def fit(config: Config, wait: bool = False) -> None:
    """The run of a configuration, from where it stands to its last row. Raises Stopped at a signal.

    wait: where another process trains it, goes on with what that leaves; without, UserError.
    """
    with listening() as requests:
        _fit(config, wait, requests)


def _fit(config: Config, wait: bool, requests: Requests) -> None:
    devices.adopt_launcher_devices(config)
    print(f"fit: {config.name}, seed {config.seed}", file=sys.stderr, flush=True)

    from eltlab.common.torch_device import choose_device, choose_precision
    from eltlab.data.build import build_data
    from eltlab.evaluation.evaluate import default_loops, draws_of, evaluate_run
    from eltlab.runs.run import Run

    run = Run.of(config)
    # Before the folder is made: what is missing is said at once and leaves nothing behind.
    check_wandb(config)
    device = choose_device(config.trainer.accelerator)
    distributed.init_process_group(device)
    precision = choose_precision(config.trainer.precision, device)
    print(*bill_lines(config, find_machine(device.type, precision)), sep="\n", file=sys.stderr)
    data = build_data(config)
    splits = None
    if config.evaluate and ranks.is_main_process():  # which alone measures; the others wait in held
        from eltlab.evaluation.metrics import check_metrics

        splits = data.images(config)
        loops, floor = default_loops(config), data.tokenizer is not None
        draws = draws_of(run, config, loops, config.seed, floor)
        check_metrics(config, len(splits[0]), draws, device)
    with held(run, wait):
        train(run, data, device, requests)
        if config.evaluate:
            evaluate_run(run, config, default_loops(config), config.seed, splits)
    print(f"run: {run.folder}")


@contextmanager
def held(run: "Run", wait: bool) -> Iterator[None]:
    """Holds the run for all of its processes: the first takes the lock, which the others await."""
    with run.alone(wait) if ranks.is_main_process() else nullcontext():
        distributed.barrier()
        yield


def train(run: "Run", data: "TrainingData", device: "torch.device", requests: Requests) -> None:
    """Trains the run from its checkpoint, or from the start, to its end."""
    from lightning import Trainer

    from eltlab.common import seeds
    from eltlab.common.torch_device import choose_precision
    from eltlab.runs.checkpoints import check_architecture, read_checkpoint
    from eltlab.training.callbacks import (
        CheckpointWriter,
        MetricsWriter,
        SampleGrids,
        quiet_lightning,
    )
    from eltlab.training.module import LoopedModule
    from eltlab.training.stopping import StopOnSignal
    from eltlab.training.strategy import strategy_arguments
    from eltlab.training.validation import Validation

    config = run.config
    precision = choose_precision(config.trainer.precision, device)
    checkpoint = read_checkpoint(run.checkpoint) if run.checkpoint.is_file() else None
    if checkpoint is not None:
        data = data.with_codebook(checkpoint["eltlab"]["codebook"])
    batch_slice = seeds.slice_of_this_process(config.trainer.accumulate)
    module = LoopedModule(config, data.codebook, data.hash, batch_slice)
    if checkpoint is not None:
        check_architecture(module, checkpoint["state_dict"], run.checkpoint)
        module.resume(checkpoint)
        if module.step >= config.steps:
            print(f"finished before, at {module.images_seen:,} images", file=sys.stderr)
            return
        check_precision(checkpoint["eltlab"]["precision"], precision)
        check_images(checkpoint["eltlab"]["data"], data.hash, config)
        print(f"resumed at {module.images_seen:,} images", file=sys.stderr)
    if ranks.is_main_process():
        run.write_config()
    module.backbone.stack.recompute = config.trainer.recompute  # type: ignore[union-attr]
    if config.trainer.compile:
        module.backbone.stack.compile_blocks()  # type: ignore[operator, union-attr]
    validation = []
    if config.trainer.validations:
        validation = [Validation(run.folder, config, *data.held_out(Validation.IMAGES))]
    quiet_lightning()
    checkpoints = CheckpointWriter(run.checkpoint, config.trainer.checkpoint_seconds)
    trainer = Trainer(
        accelerator=device.type,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        accumulate_grad_batches=config.trainer.accumulate,
        precision=precision,  # type: ignore[arg-type]
        **strategy_arguments(config),
        max_epochs=1,
        callbacks=[  # the checkpoint last: what a step leaves is on disk before the step counts
            MetricsWriter(run.folder, config),
            *validation,
            SampleGrids(run.folder / "samples", config, data.tokenizer),
            checkpoints,
            StopOnSignal(requests, checkpoints.save),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run.folder,
    )
    try:
        trainer.fit(module, data.batches(config, module.start, device, batch_slice))
    except SystemExit:
        if trainer.interrupted:  # Lightning's answer to Ctrl-C; ours is in cli.py
            raise KeyboardInterrupt from None
        raise
    requests.raise_if_stopped()


def check_precision(trained: str, now: str) -> None:
    """Raises UserError where a run would go on in another precision than it began with."""
    if trained != now:
        raise UserError(
            f"trainer.precision={now}: the run was begun in {trained}; go on with "
            f"trainer.precision={trained}, or begin another with a name= of its own"
        )


def check_images(trained: str, now: str, config: Config) -> None:
    """Raises UserError where a run would go on with other images than it began with."""
    if trained != now:
        raise UserError(
            f"data={config.data.name} data.root={config.data.root}: the run was begun with other "
            "images (their hash differs); restore them, or begin another run with a name= of its own"
        )


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def check_wandb(config: Config) -> None:
    """Raises UserError where trainer.wandb is on and the package is not there."""
    if config.trainer.wandb and not _installed("wandb"):
        raise UserError(
            "trainer.wandb=true: the package wandb is not installed; pip install wandb, or leave it out"
        )
