"""Builds the metrics that metrics.extractor selects, and checks them before training."""

import sys
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.text import example_unit, format_duration
from eltlab.config.schema import Config, EncodeConfig
from eltlab.data.images.image_files import Images
from eltlab.evaluation.classifier import ClassifierMetrics, training_examples
from eltlab.evaluation.i3d import I3D, I3DMetrics, load_i3d
from eltlab.evaluation.inception import InceptionMetrics, load_inception

MIN_IMAGES = 10  # one per split of the inception score, and more than the k neighbours of precision


class Metrics(Protocol):
    extractor: str  # identifies the networks in a protocol
    reference: str  # identifies the reference set in a protocol

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Columns for uint8 images [N, C, H, W] or clips [N, F, C, H, W] sampled with labels [N]."""

    def distances_between_halves(self) -> dict[str, float]:
        """Columns with the distances of real data to real data, the same in every row."""


# The columns that are printed after a measurement, with their decimals.
DECIMALS = {
    "heldout_loss": 4,
    "fid": 2,
    "kid": 4,
    "precision": 3,
    "recall": 3,
    "fvd": 1,
    "fd_classifier": 2,
    "accuracy": 3,
}


def describe_metrics(row: dict[str, Any]) -> str:
    """The measured columns of a row in one line."""
    return ", ".join(f"{key} {row[key]:.{n}f}" for key, n in DECIMALS.items() if row.get(key) is not None)


def build_metrics(config: Config | EncodeConfig, train: Images, device: torch.device) -> Metrics:
    """The metrics of metrics.extractor against metrics.reference training images. Raises UserError."""
    count = config.metrics.reference
    # Not subset(None), which would read all files into memory.
    reference = train if count is None else train.subset(count)
    if config.metrics.extractor == "classifier":
        return ClassifierMetrics(training_examples(train), config.data.classes, reference)
    check_counts(config, len(reference))
    if config.metrics.extractor == "i3d":
        return I3DMetrics(config, train, reference, device)
    return InceptionMetrics(config.metrics.weights, reference, device)


def check_metrics(config: Config | EncodeConfig, train_images: int, draws: int, device: torch.device) -> None:
    """Raises the UserErrors of build_metrics before training; may download Inception's weights.
    draws: how many times metrics.samples images will be measured. FVD prints how long that will take."""
    reference, unit = config.metrics.reference, example_unit(config.data.shape)
    if reference is not None and reference > train_images:
        raise UserError(
            f"metrics.reference={reference}: the training split has only {train_images:,} {unit}; give "
            f"at most {train_images}"
        )
    if config.metrics.extractor == "classifier":
        return
    check_counts(config, train_images)
    if config.metrics.extractor == "inception":
        load_inception(config.metrics.weights)
        return
    network = load_i3d(config.metrics.weights)
    if draws:
        announce_i3d_time(config, network.to(device), train_images, draws, device)


def check_counts(config: Config | EncodeConfig, train_images: int) -> None:
    """Raises UserError if samples or reference are too few for the distances of a large network."""
    metrics, unit = config.metrics, example_unit(config.data.shape)
    for key in ("samples", "reference"):
        count = getattr(metrics, key)
        if count is not None and count < MIN_IMAGES:
            raise UserError(
                f"metrics.{key}={count}: too few for metrics.extractor={metrics.extractor}; give at least "
                f"{MIN_IMAGES}"
            )
    if train_images < MIN_IMAGES:
        raise UserError(
            f"data.name={config.data.name}: a reference of {train_images} {unit} is too small for "
            f"metrics.extractor={metrics.extractor}; add {unit}, at least {MIN_IMAGES} are required"
        )


def announce_i3d_time(
    config: Config | EncodeConfig, network: I3D, train_images: int, draws: int, device: torch.device
) -> None:
    """Times I3D on one clip and prints how long all clips will take."""
    data, samples = config.data, config.metrics.samples
    clip = torch.zeros(1, data.frames, 3, data.pixels, data.pixels, dtype=torch.uint8)
    with torch.inference_mode():
        network(clip.to(device))  # the first pass is slower
        started = time.monotonic()
        network(clip.to(device)).cpu()
    seconds = time.monotonic() - started
    reference = config.metrics.reference or train_images
    clips = f"{reference:,} real clips, once, and {draws} x {samples:,} samples"
    total = f"{format_duration((reference + draws * samples) * seconds)} in total"
    fast = "metrics.extractor=classifier is fast"
    print(f"FVD: I3D sees {clips}, at {seconds:.2g} s per clip: {total}; {fast}", file=sys.stderr)
