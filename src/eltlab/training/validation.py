"""Validation loss of the averaged weights, by exit and by noise level or mask ratio, in validation.csv."""

import csv
import math
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.seeds import BatchNoise, BatchSlice, generator
from eltlab.config.schema import Config
from eltlab.data.images.image_set import as_input
from eltlab.training.callbacks import StepCallback, evenly_spaced_steps, truncate_csv

LEVELS = 5  # bins of the corruption level, from light to heavy
COLUMNS = ["step", "images", "exit", "level", "loss", "gap"]


class Validation(StepCallback):
    """Measures the loss of every exit at LEVELS levels, trainer.validations times per run.

    level is the mean time (diffusion, flow) or mask ratio (masked) of the bin. gap is the loss minus that
    of the last exit. Images, corruption and levels are the same at every step and for every seed.

    Args:
        inputs, labels: held-out examples, as uint8 images or as inputs of the objective.
    """

    IMAGES = 512  # of the held-out split, at most
    # With data.tuning the losses choose between runs: all of the tenth, unless it is too large for memory.
    # Images, corruption and levels are the same for all runs, so that differences are exact to far less
    # than the standard error of a loss.
    TUNING_IMAGES = 5000
    VALUES = 2**25  # largest number of values in a prediction of an exit or in a layer: 128 MiB

    def __init__(self, folder: Path, config: Config, inputs: Tensor, labels: Tensor) -> None:
        self.path = folder / "validation.csv"
        self.exits = tuple(range(1, config.loops + 1))
        self.steps = evenly_spaced_steps(config.steps, config.trainer.validations)
        self.inputs, self.labels = inputs, labels
        data, model = config.data, config.model
        predicted = data.codebook if config.objective.INPUTS == "tokens" else data.patch_values
        # A layer holds the residual stream, and the hidden layer before and after GELU.
        per_token = max(predicted, model.width + 2 * model.mlp_width)
        self.at_once = max(self.VALUES // (data.tokens * per_token), 1)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if ranks.is_main_process():
            truncate_csv(self.path, COLUMNS, module.start)
        self.inputs, self.labels = self.inputs.to(module.device), self.labels.to(module.device)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        lines = self.measure(module)  # on every rank, because the average may be sharded
        if ranks.is_main_process():
            with self.path.open("a", newline="") as file:
                position = {"step": module.step, "images": module.images_seen}
                csv.DictWriter(file, COLUMNS).writerows(position | line for line in lines)
        module.tick(count=False)

    @torch.inference_mode()
    def measure(self, module: Any) -> list[dict[str, float]]:
        """One line per exit and level."""
        device = module.device
        lines: list[dict[str, float]] = []
        # Shuffled, because the images are sorted by class and each level must see all classes.
        order = torch.randperm(len(self.inputs), generator=generator("validation", "order"))
        for level in range(LEVELS):
            indices = order[level::LEVELS].to(device)
            if not len(indices):
                continue
            micro_batches = micro_batch_count(len(indices), self.at_once)
            indices = indices[: len(indices) - len(indices) % micro_batches]
            within = (torch.arange(len(indices), device=device) + 0.5) / len(indices)
            u_B = (level + within) / LEVELS
            total = torch.zeros(len(self.exits), device=device)
            for batch_slice in BatchSlice(micro_batches=micro_batches).each_micro_batch():
                draw = generator("validation", "corrupt", level, device=device)
                noise = BatchNoise(draw, len(indices), batch_slice)
                total += self.losses(module, indices[batch_slice.rows(len(indices))], noise, u_B)
            losses = (total / micro_batches).tolist()
            mean_level = round(module.objective.level(u_B).mean().item(), 4)
            lines += [
                {"exit": n, "level": mean_level, "loss": loss, "gap": loss - losses[-1]}
                for n, loss in zip(self.exits, losses, strict=True)
            ]
        return lines

    def losses(self, module: Any, indices: Tensor, noise: BatchNoise, u_B: Tensor) -> Tensor:
        """The loss of each exit [L] on a micro-batch; their mean is that of all images at levels u_B."""
        inputs, target = module.objective.corrupt(as_input(self.inputs[indices]), noise, u_B)
        with module.trainer.precision_plugin.forward_context():
            done = module.ema(*inputs, labels_B=self.labels[indices], exits=self.exits)
        return torch.stack([module.objective.loss(done.exits[n], target) for n in self.exits])


def micro_batch_count(count: int, at_once: int) -> int:
    """How many equal micro-batches of at most at_once examples drop the fewest of count examples."""
    least = math.ceil(count / at_once)
    return min(range(least, min(2 * least, count) + 1), key=lambda parts: count % parts)
