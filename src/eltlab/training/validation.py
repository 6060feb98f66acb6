"""Validation loss of the averaged weights, by exit and by noise level or mask ratio, in validation.csv."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from eltlab.common import ranks
from eltlab.common.seeds import generator
from eltlab.config.schema import Config
from eltlab.evaluation.heldout_loss import pair_losses
from eltlab.generation.anytime_sampler import AnytimeSampler
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

    def __init__(self, folder: Path, config: Config, inputs: Tensor, labels: Tensor) -> None:
        self.path, self.config = folder / "validation.csv", config
        self.exits = tuple(range(1, config.loops + 1))
        self.steps = evenly_spaced_steps(config.steps, config.trainer.validations)
        self.inputs, self.labels = inputs, labels

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if ranks.is_main_process():
            truncate_csv(self.path, COLUMNS, module.start)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        lines = self.measure(module)  # on every rank, because the average may be sharded
        if ranks.is_main_process():
            with self.path.open("a", newline="") as file:
                position = {"step": module.step, "images": module.images_seen}
                csv.DictWriter(file, COLUMNS).writerows(position | line for line in lines)
        module.tick(count=False)

    def measure(self, module: Any) -> list[dict[str, float]]:
        """One line per exit and level."""
        model = AnytimeSampler(module.average, self.config, None)
        lines: list[dict[str, float]] = []
        # Shuffled, because the images are sorted by class and each level must see all classes.
        order = torch.randperm(len(self.inputs), generator=generator("validation", "order"))
        for level in range(LEVELS):
            images = order[level::LEVELS]
            if not len(images):
                continue
            u_B = (level + (torch.arange(len(images)) + 0.5) / len(images)) / LEVELS
            found = pair_losses(model, self.inputs, self.labels, images, u_B, self.exits)
            losses = found.mean(dim=1).tolist()
            mean_level = round(module.objective.level(u_B).mean().item(), 4)
            lines += [
                {"exit": n, "level": mean_level, "loss": loss, "gap": loss - losses[-1]}
                for n, loss in zip(self.exits, losses, strict=True)
            ]
        return lines
