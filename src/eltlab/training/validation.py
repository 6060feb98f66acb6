"""Validation loss of the averaged weights by exit and by noise level or mask ratio: validation.csv."""

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

LEVELS = 5  # bins of the corruption, from light to heavy
COLUMNS = ["step", "images", "exit", "level", "loss", "gap"]


class Validation(StepCallback):
    """trainer.validations times over the run: the loss of every exit at LEVELS levels.

    level is the mean time (diffusion) or mask ratio (masked) of the bin; gap is how far the exit is
    behind the last one. Images, corruption and levels are the same at every step and for every seed.

    Args:
        inputs, labels: of the held-out images; what the objective corrupts, or uint8 images.
    """

    IMAGES = 512  # of the held-out split, at most
    VALUES = 2**25  # that an exit predicts in one pass, or a layer works on, at most: 128 MiB

    def __init__(self, folder: Path, config: Config, inputs: Tensor, labels: Tensor) -> None:
        self.path = folder / "validation.csv"
        self.exits = tuple(range(1, config.loops + 1))
        self.steps = evenly_spaced_steps(config.steps, config.trainer.validations)
        self.inputs, self.labels = inputs, labels
        data, model = config.data, config.model
        predicted = data.codebook if config.objective.INPUTS == "tokens" else data.patch_values
        # The residual stream, and the hidden layer before and after GELU.
        of_token = max(predicted, model.width + 2 * model.mlp_width)
        self.at_once = max(self.VALUES // (data.tokens * of_token), 1)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        if ranks.is_main_process():
            truncate_csv(self.path, COLUMNS, module.start)
        self.inputs = self.inputs.to(module.device)
        self.labels = self.labels.to(module.device)

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if module.step not in self.steps:
            return
        measured = self.measure(module)  # by every device: the average may lie in shards
        if ranks.is_main_process():
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
            pieces = pieces_of(len(chosen), self.at_once)
            chosen = chosen[: len(chosen) - len(chosen) % pieces]
            within = (torch.arange(len(chosen), device=device) + 0.5) / len(chosen)
            u_B = (level + within) / LEVELS
            total = torch.zeros(len(self.exits), device=device)
            for batch_slice in BatchSlice(micro_batches=pieces).each_micro_batch():
                draw = generator("validation", "corrupt", level, device=device)
                noise = BatchNoise(draw, len(chosen), batch_slice)
                total += self.losses(module, chosen[batch_slice.rows(len(chosen))], noise, u_B)
            losses = (total / pieces).tolist()
            mean_level = round(module.objective.level(u_B).mean().item(), 4)
            lines += [
                {"exit": n, "level": mean_level, "loss": loss, "gap": loss - losses[-1]}
                for n, loss in zip(self.exits, losses, strict=True)
            ]
        return lines

    def losses(self, module: Any, piece: Tensor, noise: BatchNoise, u_B: Tensor) -> Tensor:
        """Of each exit [L]; the mean over the pieces is that of all images at levels u_B."""
        inputs, target = module.objective.corrupt(as_input(self.inputs[piece]), noise, u_B)
        with module.trainer.precision_plugin.forward_context():
            done = module.ema(*inputs, labels_B=self.labels[piece], exits=self.exits)
        return torch.stack([module.objective.loss(done.exits[n], target) for n in self.exits])


def pieces_of(count: int, at_once: int) -> int:
    """Into how many equal pieces of at most at_once so many are cut, with the fewest left over."""
    least = math.ceil(count / at_once)
    return min(range(least, min(2 * least, count) + 1), key=lambda pieces: count % pieces)
