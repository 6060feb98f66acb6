"""Trains a prepared run: its module, its Lightning Trainer, and the checks of a resumed checkpoint."""

import logging
import sys
import warnings
from typing import Any

from lightning import Callback, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE, describe_code
from eltlab.common.seeds import slice_of_this_process
from eltlab.common.signals import Requests
from eltlab.config.schema import Config
from eltlab.data.build import TrainingData
from eltlab.data.image_sources import same_data
from eltlab.evaluation.prepare_run import Prepared
from eltlab.runs.checkpoints import check_architecture, read_checkpoint
from eltlab.runs.old_runs import refuse_resume
from eltlab.training.callbacks import CheckpointWriter, MetricsWriter, SampleGrids
from eltlab.training.looped_module import LoopedModule
from eltlab.training.sharding import ShardedStrategy
from eltlab.training.validation import Validation


def train(prepared: Prepared, requests: Requests) -> None:
    """Trains the run from its checkpoint, or from the start, to the end of its budget."""
    config, data = prepared.config, prepared.data
    assert data is not None
    path = prepared.run.checkpoint
    checkpoint = read_checkpoint(path) if path.is_file() else None
    if checkpoint is not None:
        refuse_resume(checkpoint, path)
        counters = checkpoint["eltlab"]
        check_data(counters["data"], data.train.origin, config)
        if counters["step"] >= config.steps:
            print(
                f"finished before, at {counters['images_seen']:,} images{trained_by(counters)}",
                file=sys.stderr,
            )
            return
        check_resumable(counters, prepared.precision, config)
        data = data.with_codebook(counters["codebook"])  # a run decodes with the codes it was trained on
    batch_slice = slice_of_this_process(config.trainer.accumulate)
    module = LoopedModule(config, data.codebook, data.train.origin, batch_slice)
    if checkpoint is not None:
        check_architecture(module, checkpoint["state_dict"], path, checkpoint["eltlab"]["code"])
        module.resume(checkpoint)
        print(f"resumed at {module.images_seen:,} images", file=sys.stderr)
    if ranks.is_main_process():
        prepared.run.write_config()
    trainer = build_trainer(prepared, data, requests)
    batches = data.batches(config, module.start, prepared.device, batch_slice)
    try:
        trainer.fit(module, batches)
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None  # Lightning turned Ctrl-C into SystemExit
    requests.raise_if_stopped()


def build_trainer(prepared: Prepared, data: TrainingData, requests: Requests) -> Trainer:
    """Lightning's Trainer, with every part that eltlab replaces turned off."""
    config = prepared.config
    for name in ("lightning.pytorch", "lightning.fabric"):  # advice about the replaced parts
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return Trainer(
        accelerator=prepared.device.type,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        accumulate_grad_batches=config.trainer.accumulate,
        precision=prepared.precision,  # type: ignore[arg-type]
        **strategy_arguments(config),
        max_epochs=1,  # the batches of the whole run are one epoch of the loader
        callbacks=build_callbacks(prepared, data, requests),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=prepared.run.folder,
    )


def build_callbacks(prepared: Prepared, data: TrainingData, requests: Requests) -> list[Callback]:
    """What happens after a step, in order. The checkpoint is last: it is never ahead of the files."""
    config, folder = prepared.config, prepared.run.folder
    callbacks: list[Callback] = [MetricsWriter(folder, config)]
    if config.trainer.validations:
        most = Validation.TUNING_IMAGES if config.data.tuning else Validation.IMAGES
        callbacks.append(Validation(folder, config, *data.held_out(most)))
    callbacks.append(SampleGrids(folder / "samples", config, data.tokenizer))
    seconds = config.trainer.checkpoint_seconds
    return [*callbacks, CheckpointWriter(prepared.run.checkpoint, seconds, requests)]


def strategy_arguments(config: Config) -> dict[str, Any]:
    """The launcher and the strategy (DDP or FSDP2), as arguments of the Trainer."""
    # Set explicitly: Lightning would detect SLURM and answer its signals with its own checkpoints and
    # requeues. A job started by cluster.py has torchrun's variables too.
    launched = ranks.is_launched()
    arguments: dict[str, Any] = {"plugins": TorchElasticEnvironment() if launched else LightningEnvironment()}
    if ranks.world_size() == 1:
        return arguments
    if config.trainer.strategy == "fsdp":
        return arguments | {"strategy": ShardedStrategy()}
    # Only the injection can stay without a gradient, in a pass of one loop.
    unused = config.model.inject_input and 1 in config.supervision.spent(config.loops).depths
    strategy = DDPStrategy(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=unused
    )
    return arguments | {"strategy": strategy}


def check_data(trained: str, found: str, config: Config) -> None:
    """Raises UserError if a run was started with other images. trained, found: hashes of their content."""
    if not same_data(trained, found):
        raise UserError(
            f"data={config.data.name} data.root={config.data.root}: the run was started with "
            "different images (their hash differs); restore them, or start a new run under another name="
        )


def check_resumable(counters: dict[str, Any], precision: str, config: Config) -> None:
    """Raises UserError if a run would continue in a different precision or under different code."""
    if counters["source"] != SOURCE:
        before = describe_code(counters["code"], counters["source"])
        raise UserError(
            f"name={config.name}: the run was started by {before}, and this is {describe_code()}; restore "
            "that version to resume the run, or start a new run under another name="
        )
    trained = counters["precision"]
    if trained != precision:
        raise UserError(
            f"trainer.precision={precision}: the run was started in {trained}; continue with "
            f"trainer.precision={trained}, or start a new run under another name="
        )


def trained_by(counters: dict[str, Any]) -> str:
    """Says that a finished run was trained by other code than this; empty if it was not."""
    if counters["source"] == SOURCE:
        return ""
    trained = describe_code(counters["code"], counters["source"])
    return f"; trained by {trained}, not by this source ({SOURCE}), and not trained again"
