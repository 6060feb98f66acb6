"""Trains a prepared run: its module, its Lightning Trainer, and the checks of a resumed checkpoint."""

import sys
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.seeds import slice_of_this_process
from eltlab.common.signals import Requests
from eltlab.config.schema import Config
from eltlab.data.build import TrainingData
from eltlab.evaluation.prepare import Prepared
from eltlab.runs.checkpoints import check_architecture, read_checkpoint
from eltlab.training.callbacks import (
    CheckpointWriter,
    MetricsWriter,
    SampleGrids,
    quiet_lightning,
)
from eltlab.training.module import LoopedModule
from eltlab.training.strategy import strategy_arguments
from eltlab.training.validation import Validation


def train(prepared: Prepared, requests: Requests) -> None:
    """Trains the run from its checkpoint, or from the start, to the end of its budget."""
    config, data = prepared.config, prepared.data
    assert data is not None
    path = prepared.run.checkpoint
    checkpoint = read_checkpoint(path) if path.is_file() else None
    if checkpoint is not None:  # a run decodes with the codes that it was trained on
        data = data.with_codebook(checkpoint["eltlab"]["codebook"])
    batch_slice = slice_of_this_process(config.trainer.accumulate)
    module = LoopedModule(config, data.codebook, data.hash, batch_slice)
    if checkpoint is not None:
        check_architecture(module, checkpoint["state_dict"], path, checkpoint["eltlab"]["code"])
        module.resume(checkpoint)
        if module.step >= config.steps:
            print(f"finished before, at {module.images_seen:,} images", file=sys.stderr)
            return
        check_resumable(checkpoint["eltlab"], prepared.precision, data.hash, config)
        print(f"resumed at {module.images_seen:,} images", file=sys.stderr)
    if ranks.is_main_process():
        prepared.run.write_config()
    trainer = build_trainer(prepared, data, requests)
    batches = data.batches(config, module.start, prepared.device, batch_slice)
    try:
        trainer.fit(module, batches)
    except SystemExit:
        if (
            trainer.interrupted
        ):  # Lightning turns Ctrl-C into SystemExit; common/command.py expects this
            raise KeyboardInterrupt from None
        raise
    requests.raise_if_stopped()


def build_trainer(prepared: Prepared, data: TrainingData, requests: Requests) -> Trainer:
    """Lightning's Trainer, with every part that eltlab replaces turned off."""
    config, folder = prepared.config, prepared.run.folder
    quiet_lightning()
    return Trainer(
        accelerator=prepared.device.type,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        accumulate_grad_batches=config.trainer.accumulate,
        precision=prepared.precision,  # type: ignore[arg-type]
        **strategy_arguments(config),
        max_epochs=1,  # the batches of the whole run are one epoch of the loader
        callbacks=build_callbacks(folder, prepared, data, requests),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def build_callbacks(
    folder: Path, prepared: Prepared, data: TrainingData, requests: Requests
) -> list[Callback]:
    """What happens after a step, in order. The checkpoint is last: it is never ahead of the files."""
    config = prepared.config
    callbacks: list[Callback] = [MetricsWriter(folder, config)]
    if config.trainer.validations:
        callbacks.append(Validation(folder, config, *data.held_out(Validation.IMAGES)))
    path, seconds = prepared.run.checkpoint, config.trainer.checkpoint_seconds
    checkpoints = CheckpointWriter(path, seconds, requests)
    grids = SampleGrids(folder / "samples", config, data.tokenizer)
    return [*callbacks, grids, checkpoints]


def check_resumable(
    counters: dict[str, Any], precision: str, data_hash: str, config: Config
) -> None:
    """Raises UserError if a run would continue in another precision, or with other images."""
    trained = counters["precision"]
    if trained != precision:
        raise UserError(
            f"trainer.precision={precision}: the run was started in {trained}; continue with "
            f"trainer.precision={trained}, or start another run with a name= of its own"
        )
    if counters["data"] != data_hash:
        raise UserError(
            f"data={config.data.name} data.root={config.data.root}: the run was started with other "
            "images (their hash differs); restore them, or start another run with a name= of its own"
        )
