"""Lightning callbacks that show progress, and write metrics, checkpoints and sample grids."""

import csv
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, Trainer

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.common.image_grids import grid_suffixes, save_grid
from eltlab.common.progress import Bar
from eltlab.common.signals import STOPS, Requests
from eltlab.common.text import example_unit, format_loops
from eltlab.config.keys import flatten
from eltlab.config.schema import Config
from eltlab.data.tokenizers.tokenizer import Tokenizer
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.training.collapse import collapse_note
from eltlab.training.looped_module import LoopedModule


class StepCallback(Callback):
    """Calls `after_step` on every rank after each optimizer step; Lightning's hook runs per micro-batch."""

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % module.batch_slice.micro_batches == 0:
            self.after_step(trainer, module)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        raise NotImplementedError


class MetricsWriter(StepCallback):
    """Updates the progress bar, and writes metrics every trainer.log_every steps: to metrics.csv,
    TensorBoard and, with trainer.wandb, Weights & Biases. At the end it says if the model collapsed."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.path = folder / "metrics.csv"
        loops = range(1, config.loops + 1)
        exits, updates = [f"loss_exit_{n}" for n in loops], [f"update_{n}" for n in loops]
        self.columns = ["step", "images", "loss", *exits, "gap", "loss_distill", "weight", "student", "depth"]
        self.columns += [*updates, "grad_norm", "lr", "skipped", "images_per_second"]
        self.updates: dict[int, float] = {}  # relative update of each loop, when last reported
        self.resources = ExitStack()  # closed when training ends, also by an error

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        config = module.config
        if ranks.is_main_process():
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            truncate_csv(self.path, self.columns, module.start)
            self.writer = SummaryWriter(self.path.parent / "tensorboard", purge_step=module.start + 1)
            self.resources.callback(self.writer.close)
            self.wandb = start_wandb(self.path.parent, config)
            if self.wandb is not None:
                self.resources.callback(self.wandb.finish)
        self.since = (module.step, module.train_seconds)
        bar = Bar("train", config.images, module.images_seen, example_unit(config.data.shape))
        self.bar = self.resources.enter_context(bar)

    def after_step(self, trainer: Trainer, module: LoopedModule) -> None:
        module.tick()
        note = ""
        if module.is_report_due(module.step - 1):
            values = module.report()  # on every rank, because it reduces over ranks
            step, seconds = self.since
            images = (module.step - step) * module.config.batch_size
            values["images_per_second"] = images / max(module.train_seconds - seconds, 1e-9)
            self.since = (module.step, module.train_seconds)
            found = {n: values.get(f"update_{n}") for n in range(1, module.config.loops + 1)}
            self.updates |= {n: update for n, update in found.items() if update is not None}
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
        if self.wandb is not None:
            self.wandb.log(row, step=position["step"])

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.resources.close()
        config = module.config
        note = collapse_note(self.updates, config.supervision) if module.step == config.steps else None
        if note is not None and ranks.is_main_process():
            print(f"warning: {note}", file=sys.stderr)

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        self.resources.close()


def truncate_csv(path: Path, columns: list[str], step: int) -> None:
    """Writes the header of a CSV file and keeps its lines up to the step that a run resumes from."""
    kept = []
    if path.is_file() and step:
        with path.open(newline="") as file:
            # A killed process may have left an incomplete last line.
            complete = [row for row in csv.DictReader(file) if None not in row.values()]
        kept = [row for row in complete if row["step"].isdigit() and int(row["step"]) <= step]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(kept)


def start_wandb(folder: Path, config: Config) -> Any:
    """The Weights & Biases run of this folder, resumed under the same id; None without trainer.wandb."""
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


class Agreement:
    """Lets all ranks save or stop after the same step: they learn the largest request of any rank.

    A request of one step is answered at the next, because requests are reduced on the CPU (gloo) while a
    step runs, so that no step waits for a device. With several ranks the constructor creates a process
    group, so every rank must call it.
    """

    def __init__(self) -> None:
        self.group: Any = None  # None for a single rank
        self.request = torch.zeros((), dtype=torch.int32)
        self.work: Any = None  # the reduction in flight
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def agree(self, request: int) -> int:
        """The largest request of one step ago. Every rank calls this at the end of every step."""
        if self.group is None:
            return request
        answer = self.wait_for_answer()
        self.request = torch.tensor(int(request), dtype=torch.int32)
        self.work = dist.all_reduce(self.request, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer

    def wait_for_answer(self) -> int:
        """Waits for the reduction in flight. Returns its result, or 0 if there is none."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.request)


class CheckpointWriter(StepCallback):
    """Writes checkpoints/last.ckpt atomically: every `seconds`, at the end, and after a signal to stop.
    At a signal it then raises Stopped, on all ranks after the same step."""

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
            # The signal may have reached a different rank only. This rank stops with the same code.
            self.signals.number = self.signals.number or STOPS[0]
            self.signals.raise_if_stopped(f" at {module.images_seen:,} images")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.signals.deferred = False
        self.agreement.wait_for_answer()

    def save(self, trainer: Trainer) -> None:
        """Called on every rank, because shards are gathered; only the main process writes the file."""
        with atomic_path(self.path) if ranks.is_main_process() else nullcontext(self.path) as path:
            trainer.save_checkpoint(path)
        self.saved = time.monotonic()


class SampleGrids(StepCallback):
    """Writes a grid to samples/ trainer.grids times per run: the same noise and labels at every loop count
    of evaluate_loops."""

    COLUMNS = 10

    def __init__(self, folder: Path, config: Config, tokenizer: Tokenizer | None) -> None:
        self.folder, self.config, self.tokenizer = folder, config, tokenizer
        self.steps = evenly_spaced_steps(config.steps, config.trainer.grids)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        model = AnytimeSampler(module.average, self.config, self.tokenizer)
        labels = torch.arange(self.COLUMNS) % self.config.data.classes
        loops = self.config.evaluate_loops or []  # never empty in a resolved configuration
        rows = [model.sample(labels, loops=each, seed=self.config.seed) for each in loops]
        if ranks.is_main_process():
            file = f"images_{module.images_seen:012}{grid_suffixes(self.config.data.frames)[0]}"
            save_grid(self.folder / file, rows, [format_loops(each) for each in loops])
        module.tick(count=False)


def evenly_spaced_steps(steps: int, times: int) -> set[int]:
    """`times` steps spread evenly over a run, up to and including the final step."""
    return {-(-steps * n // times) for n in range(1, times + 1)}
