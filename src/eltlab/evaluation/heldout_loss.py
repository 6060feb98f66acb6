"""The loss of each exit on given examples, at fixed levels of corruption and with fixed noise."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eltlab.common.disk_cache import digest
from eltlab.common.progress import Bar
from eltlab.common.seeds import BatchNoise, SampleNoise, fold, generator
from eltlab.common.torch_device import autocast
from eltlab.config.identity import without_effect
from eltlab.config.keys import stable_dict
from eltlab.config.schema import Config
from eltlab.data.batches import Rows
from eltlab.data.build import TrainingData
from eltlab.data.images.image_set import as_input, choose_subset
from eltlab.data.readahead import read_ahead
from eltlab.generation.anytime_sampler import AnytimeSampler

PAIRS = 4096  # (example, level) pairs of a measurement, at least: small splits are repeated
VALUES = 2**25  # largest number of values in the predictions of a batch or in a layer: 128 MiB
NEIGHBOURS = 16  # pairs of neighbouring levels, whose mean stands for the loss at these levels
NOISE = fold("held-out", "noise")
VERSION = f"{PAIRS} pairs, noise by position, version 1"  # of the measurement; part of loss_protocol
LOSSES = ("heldout_loss", "heldout_loss_se", "train_loss")  # columns of a row
# Keys of data that define what is predicted.
PREDICTED = ("kind", "frames", "size", "channels", "patch", "frame_patch", "codebook", "classes", "tuning")


class Loss(NamedTuple):
    mean: float
    se: float  # standard error of the mean, over the draw of the examples and their noise


def measure_losses(
    model: AnytimeSampler,
    inputs: Rows,
    labels: Tensor,
    exits: Sequence[int],
    chosen: Tensor | None = None,
    title: str = "loss",
) -> dict[int, Loss]:
    """The objective's loss of each exit, as in training but without dropout of labels or features.

    Every example is measured at ⌈PAIRS / examples⌉ levels. Together the levels are (k + 0.5) / pairs, so
    their mean has no error of sampling, and each example has one in each of as many equal strata. Levels and
    noise depend on the position of an example and on nothing else: they are the same for every run and seed.

    Args:
        inputs: of the objective, or images as uint8; read in batches that bound the memory.
        labels: int64 [N], of all inputs.
        exits: loop counts; one pass measures them all.
        chosen: int64, which of the inputs to measure; None: all.
        title: of the progress bar.
    """
    chosen = torch.arange(len(labels)) if chosen is None else chosen
    count, repeats = len(chosen), math.ceil(PAIRS / len(chosen))
    if repeats > 1:  # few: they are read, decoded and encoded once
        inputs, labels, chosen = inputs[chosen], labels[chosen], torch.arange(count)
    # The pair r·N + i is example i in repeat r, which has the strata r·N … (r + 1)·N − 1 in random order:
    # examples are sorted by class.
    orders = [torch.randperm(count, generator=generator("held-out", "levels", r)) for r in range(repeats)]
    strata = torch.cat([r * count + order for r, order in enumerate(orders)])
    u_M = ((strata.double() + 0.5) / len(strata)).float()
    wanted = tuple(sorted(set(exits)))
    with Bar(title, len(u_M), unit="passes") as bar:
        losses = pair_losses(model, inputs, labels, torch.arange(len(u_M)), u_M, wanted, chosen, bar)
    return {n: Loss(*mean_and_error(row, strata, count)) for n, row in zip(wanted, losses, strict=True)}


@torch.inference_mode()
def pair_losses(
    model: AnytimeSampler,
    inputs: Rows,
    labels: Tensor,
    pairs_M: Tensor,
    u_M: Tensor,
    exits: tuple[int, ...],
    chosen: Tensor | None = None,
    bar: Bar | None = None,
) -> Tensor:
    """The loss of each exit for each pair, float64 [exits, M] on the CPU; its mean over M is the loss of all.

    pairs_M: a pair p is the example p mod N of the N chosen (None: of all inputs), with noise of its own.
    u_M: in [0, 1), how far the example of each pair is corrupted.
    """
    chosen = torch.arange(len(labels)) if chosen is None else chosen
    examples = chosen[pairs_M % len(chosen)]
    size = batch_within_memory(model.config, len(exits))
    batches = [part.tolist() for part in examples.split(size)]
    pinned, workers = model.device.type == "cuda", getattr(inputs, "workers", 0)
    u_M, found = u_M.to(model.device), []
    for number, x in enumerate(read_ahead(inputs, batches, workers, pinned)):  # type: ignore[arg-type]
        rows = slice(number * size, number * size + len(x))
        noise = PairNoise(pairs_M, rows, model.device)
        x = as_input(x.to(model.device, non_blocking=True))
        labels_B = labels[examples[rows]].to(model.device)
        corrupted, target = model.objective.corrupt(x, noise, u_M)
        with autocast(model.device, model.precision):
            done = model.backbone(*corrupted, labels_B=labels_B, exits=exits)
        losses = torch.stack([model.objective.losses(done.exits[n], target) for n in exits])
        found.append(losses.double().cpu())
        if bar is not None:
            bar.update(rows.stop)
    return torch.cat(found, dim=1)


class PairNoise(BatchNoise):
    """The noise of some pairs, keyed by the pair, so that no batch size changes it.

    pairs_M: all pairs of the measurement, which are the whole batch of the objective. rows: those to draw.
    """

    def __init__(self, pairs_M: Tensor, rows: slice, device: torch.device) -> None:
        self.pairs, self.rows, self.device = pairs_M.tolist(), rows, device
        self.own = SampleNoise(NOISE, self.pairs[rows], device)

    def normal(self, *shape: int) -> Tensor:
        return self.own.normal(*shape)

    def uniform(self, *shape: int) -> Tensor:
        return self.own.uniform(*shape)

    def uniform_whole_batch(self, *shape: int) -> Tensor:
        return SampleNoise(fold(NOISE, "whole"), self.pairs, self.device).uniform(*shape)

    def own_rows(self, values: Tensor) -> Tensor:
        return values[self.rows]


def mean_and_error(losses_M: Tensor, strata: Tensor, examples: int) -> tuple[float, float]:
    """The mean of float64 [M], and its standard error if the examples and their noise were drawn at random.

    The levels are fixed, so what the loss varies between them is no error: each loss is compared with the
    mean of its neighbours in level (collapsed strata; Cochran, Sampling Techniques, 5A.12). The repeats of
    an example share it, so their deviations are averaged first: an example is a cluster.
    """
    order = strata.argsort()
    deviations = torch.empty_like(losses_M)
    parts = losses_M[order].tensor_split(max(len(order) // NEIGHBOURS, 1))
    # A deviation from a mean of n that it is part of is too small by √((n − 1)/n).
    centred = [(part - part.mean()) * math.sqrt(len(part) / max(len(part) - 1, 1)) for part in parts]
    deviations[order] = torch.cat(centred)
    by_example = deviations.view(-1, examples).mean(dim=0)
    error = by_example.square().sum() / (examples * max(examples - 1, 1))
    return losses_M.mean().item(), error.sqrt().item()


def batch_within_memory(config: Config, exits: int) -> int:
    """How many examples to pass through the network at a time: VALUES bounds predictions and layers."""
    data, model = config.data, config.model
    predicted = data.codebook if config.objective.INPUTS == "tokens" else data.patch_values
    # A layer holds the residual stream, and the hidden layer before and after GELU.
    per_token = max(predicted * exits, model.width + 2 * model.mlp_width)
    return max(VALUES // (data.tokens * per_token), 1)


def loss_columns(
    model: AnytimeSampler, data: TrainingData, exits: Sequence[int]
) -> dict[int, dict[str, float | None]]:
    """The columns LOSSES of each exit: on the whole test split, and on as many training images (a seeded
    subset, or all) at the same levels and with the same noise."""
    test, train = data.test, data.train
    held_out = measure_losses(model, data.inputs(test), test.labels, exits, title="held-out loss")
    chosen = torch.from_numpy(choose_subset(min(len(test), len(train)), len(train), train.name))
    seen = measure_losses(model, data.inputs(train), train.labels, exits, chosen, "training loss")
    return {
        n: dict(zip(LOSSES, map(_finite, (*loss, seen[n].mean)), strict=True)) for n, loss in held_out.items()
    }


def loss_protocol(model: AnytimeSampler, data: TrainingData) -> str:
    """Twelve hex digits that identify a loss: only losses with the same ones can be compared.

    They hash the objective, what it predicts, the test examples and the precision. Dropped labels are a
    matter of training: the loss is measured with all labels.
    """
    config, tokens = model.config, model.config.objective.INPUTS == "tokens"
    objective = stable_dict(config.objective)
    del objective["label_dropout"], objective["file"]
    read = [key for key in PREDICTED if f"data.{key}" not in without_effect(config)]
    predicted = {key: getattr(config.data, key) for key in read}
    codes = model.tokenizer.hash if tokens and model.tokenizer is not None else None
    test = [config.data.encoding or data.test.origin, len(data.test)]
    return digest(json.dumps([objective, predicted, codes, test, model.precision, VERSION], sort_keys=True))


def _finite(value: float) -> float | None:
    """None for a loss that is not a number, as of an exit far beyond the trained ones: rows are JSON."""
    return value if math.isfinite(value) else None
