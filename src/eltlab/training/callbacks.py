"""Lightning callbacks that write what a run leaves: progress, metrics, checkpoints, sample grids."""

import csv
import io
import logging
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path, write_atomic
from eltlab.common.image_grids import grid_suffixes, save_grid
from eltlab.common.progress import Bar
from eltlab.common.signals import STOPS, Requests
from eltlab.common.text import example_unit, format_loops
from eltlab.config.flat import flatten
from eltlab.config.schema import Config
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.training.agreement import Agreement
from eltlab.training.module import LoopedModule


class StepCallback(Callback):
    """Calls `after_step` on every rank after each optimizer step.

    Lightning's own hook runs after each micro-batch.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % module.batch_slice.micro_batches == 0:
            self.after_step(trainer, module)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        raise NotImplementedError


class MetricsWriter(StepCallback):
    """Updates the progress bar, and writes a line of metrics every trainer.log_every steps: to metrics.csv,
    TensorBoard and, with trainer.wandb, Weights & Biases."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.path = folder / "metrics.csv"
        self.columns = metric_columns(config.loops)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        config = module.config
        if ranks.is_main_process():
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            truncate_csv(self.path, self.columns, module.start)
            events = str(self.path.parent / "tensorboard")
            self.writer = SummaryWriter(events, purge_step=module.start + 1)
            self.tracker = start_wandb(self.path.parent, config)
        self.since = (module.step, module.train_seconds)
        self.bar = Bar("train", config.images, module.images_seen, example_unit(config.data.shape))
        self.bar.__enter__()

    def after_step(self, trainer: Trainer, module: LoopedModule) -> None:
        module.tick()
        note = ""
        if module.is_report_due(module.step - 1):
            values = module.report()  # on every rank, because it reduces over ranks
            step, seconds = self.since
            images = (module.step - step) * module.config.batch_size
            values["images_per_second"] = images / max(module.train_seconds - seconds, 1e-9)
            self.since = (module.step, module.train_seconds)
            note = f"loss {values['loss']:.3f}" if "loss" in values else ""
            if ranks.is_main_process():
                self.write({"step": module.step, "images": module.images_seen}, values)
        self.bar.update(module.images_seen, note)

    def write(self, position: dict[str, int], values: dict[str, float]) -> None:
        row = {**position, **values}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, extrasaction="ignore").writerow(row)
        for name, value in values.items():
            self.writer.add_scalar(name, value, position["step"])
        if self.tracker is not None:
            self.tracker.log(row, step=position["step"])

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.bar.__exit__(None, None, None)
        if ranks.is_main_process():
            self.writer.close()
            if self.tracker is not None:
                self.tracker.finish()

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        if hasattr(self, "bar"):  # otherwise it was raised before training started
            self.on_train_end(trainer, module)


def metric_columns(loops: int) -> list[str]:
    exits = [f"loss_exit_{n}" for n in range(1, loops + 1)]
    updates = [f"update_{n}" for n in range(1, loops + 1)]
    before = ["step", "images", "loss", *exits, "gap", "loss_distill", "weight", "student", "depth"]
    return [*before, *updates, "grad_norm", "lr", "skipped", "images_per_second"]


def truncate_csv(path: Path, columns: list[str], step: int) -> None:
    """Writes a CSV file with a header and, of the lines there, those up to the step a run resumes from."""
    kept = []
    if path.is_file() and step:
        with path.open(newline="") as file:
            # A killed process may have left an incomplete last line.
            complete = [row for row in csv.DictReader(file) if None not in row.values()]
        kept = [row for row in complete if row["step"].isdigit() and int(row["step"]) <= step]
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(kept)
    write_atomic(path, buffer.getvalue())


def start_wandb(folder: Path, config: Config) -> Any:
    """The Weights & Biases run of this run folder, resumed under the same id; None without trainer.wandb.

    Raises UserError if wandb does not start.
    """
    if not config.trainer.wandb:
        return None
    import wandb

    assert config.name is not None
    try:
        return wandb.init(
            project="eltlab",
            id=f"{config.name}-{folder.name}".replace("/", "-"),
            name=config.name,
            config=flatten(config),
            dir=folder,
            resume="allow",
            settings=wandb.Settings(silent=True),
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"trainer.wandb=true: wandb did not start ({reason}); log in, set WANDB_MODE=offline, or "
            "remove the key"
        ) from error


class CheckpointWriter(StepCallback):
    """Writes checkpoints/last.ckpt atomically, every `seconds` and at the end.

    After a step in which a signal came, writes it too and raises Stopped, on all ranks after the same step.
    """

    SAVE, STOP = 1, 2  # what a rank may request

    def __init__(self, path: Path, seconds: float, signals: Requests) -> None:
        self.path, self.seconds, self.signals = path, seconds, signals
        self.saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.agreement = Agreement()
        self.signals.deferred = True
        self.signals.listen()  # again: Lightning has just installed its own handler of SIGTERM

    def after_step(self, trainer: Trainer, module: Any) -> None:
        request = self.SAVE if time.monotonic() - self.saved >= self.seconds else 0
        if self.signals.number is not None:
            request = self.STOP
        # Clocks and signals differ between ranks, but saving is collective, so they agree on the step.
        answer = self.agreement.agree(request)
        if answer or module.step == module.config.steps:
            self.save(trainer)
        if answer == self.STOP:
            # The signal may have reached another rank only; this one then stops with the same code.
            self.signals.number = self.signals.number or STOPS[0]
            self.signals.raise_if_stopped(f" at {module.images_seen:,} images")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.signals.deferred = False
        self.agreement.wait_for_answer()

    def save(self, trainer: Trainer) -> None:
        """Called on every rank, because shards are gathered; only the main process writes the file."""
        main = ranks.is_main_process()
        with atomic_path(self.path) if main else nullcontext(self.path) as path:
            trainer.save_checkpoint(path)
        self.saved = time.monotonic()


class SampleGrids(StepCallback):
    """Writes samples/, trainer.grids times over the run: the same noise and labels at several loop counts."""

    COLUMNS = 10

    def __init__(self, folder: Path, config: Config, tokenizer: Tokenizer | None) -> None:
        self.folder, self.config, self.tokenizer = folder, config, tokenizer
        self.steps = evenly_spaced_steps(config.steps, config.trainer.grids)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        model = AnytimeSampler(module.ema, self.config, self.tokenizer)
        labels = torch.arange(self.COLUMNS) % self.config.data.classes
        loops = self.config.evaluate_loops
        assert loops  # filled in when the configuration was resolved
        rows = [model.sample(labels, loops=count, seed=self.config.seed) for count in loops]
        if ranks.is_main_process():
            suffix = grid_suffixes(self.config.data.frames)[0]
            path = self.folder / f"images_{module.images_seen:012}{suffix}"
            save_grid(path, rows, [format_loops(count) for count in loops])
        module.tick(count=False)


def evenly_spaced_steps(steps: int, times: int) -> set[int]:
    """`times` steps spread evenly over a run, the last of which is the final step."""
    return {-(-steps * n // times) for n in range(1, times + 1)}


def quiet_lightning() -> None:
    """Silences the banners and the advice of Lightning about parts that eltlab replaces."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
