"""Validation loss of the averaged weights by exit and by noise level or mask ratio: validation.csv."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor

from eltlab import devices
from eltlab.config import Config
from eltlab.seeds import BatchNoise, generator
from eltlab.training.callbacks import AfterSteps, keep_rows, spread

LEVELS = 5  # bins of the corruption, from light to heavy
COLUMNS = ["step", "images", "exit", "level", "loss", "gap"]


class Validation(AfterSteps):
    """trainer.validations times over the run: the loss of every exit at LEVELS levels.

    level is the mean time (diffusion) or mask ratio (masked) of the bin; gap is how far the exit is
    behind the last one. Images, corruption and levels are the same at every step and for every seed.

    Args:
        inputs, labels: of the held-out images, as the objective corrupts them.
    """

    IMAGES = 512  # of the held-out split, at most

    def __init__(self, folder: Path, config: Config, inputs: Tensor, labels: Tensor) -> None:
        self.path = folder / "validation.csv"
        self.exits = tuple(range(1, config.loops + 1))
        self.steps = spread(config.steps, config.trainer.validations)
        self.inputs, self.labels = inputs, labels

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if devices.first():
            keep_rows(self.path, COLUMNS, module.start)
        self.inputs = self.inputs.to(module.device)
        self.labels = self.labels.to(module.device)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        measured = self.measure(module)  # by every device: the average may lie in shards
        if devices.first():
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                for line in measured:
                    writer.writerow({"step": module.step, "images": module.images_seen, **line})
        module.tick(count=False)

    @torch.inference_mode()
    def measure(self, module: Any) -> list[dict[str, float]]:
        """One line an exit and level."""
        device, lines = module.device, []
        count = len(self.inputs)
        # Levels spread evenly and in an order of their own: the images lie in the order of their classes.
        order = torch.randperm(count, generator=generator("validation", "order"))
        for level in range(LEVELS):
            chosen = order[level::LEVELS].to(device)
            if not len(chosen):
                continue
            within = (torch.arange(len(chosen), device=device) + 0.5) / len(chosen)
            u_B = (level + within) / LEVELS
            draw = generator("validation", "corrupt", level, device=device)
            noise = BatchNoise(draw, len(chosen))
            inputs, target = module.objective.corrupt(self.inputs[chosen], noise, u_B)
            with module.trainer.precision_plugin.forward_context():
                done = module.ema(*inputs, labels_B=self.labels[chosen], exits=self.exits)
            losses = [module.objective.loss(done.exits[n], target).item() for n in self.exits]
            mean_level = round(module.objective.level(u_B).mean().item(), 4)
            lines += [
                {"exit": n, "level": mean_level, "loss": loss, "gap": loss - losses[-1]}
                for n, loss in zip(self.exits, losses, strict=True)
            ]
        return lines
