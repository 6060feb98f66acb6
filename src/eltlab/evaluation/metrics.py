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
from eltlab.evaluation import i3d, inception
from eltlab.evaluation.classifier import ClassifierMetrics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.i3d import I3D, I3DMetrics, load_i3d
from eltlab.evaluation.inception import InceptionMetrics, load_inception
from eltlab.evaluation.reference import Reference, subset_size
from eltlab.evaluation.statistics_file import read_statistics_file, unusable

MIN_IMAGES = 10  # one per split of the inception score, and more than the k neighbours of precision


class Metrics(Protocol):
    extractor: str  # identifies the networks, and how their features are compared, in a protocol
    reference: str  # identifies the reference set in a protocol

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Columns for uint8 images [N, C, H, W] or clips [N, F, C, H, W] sampled with labels [N]."""


# The columns that are printed after a measurement, with their decimals.
DECIMALS = {
    "heldout_loss": 4,
    "fid": 2,
    "fid_inf": 2,
    "kid": 4,
    "precision": 3,
    "recall": 3,
    "fvd": 1,
    "fvd_inf": 1,
    "fd_classifier": 2,
    "fd_classifier_inf": 2,
    "fd_ideal": 2,
    "kd_classifier": 5,
    "kd_classifier_se": 5,
    "memorised": 3,
    "accuracy": 3,
}


def describe_metrics(row: dict[str, Any]) -> str:
    """The measured columns of a row in one line."""
    return ", ".join(f"{key} {row[key]:.{n}f}" for key, n in DECIMALS.items() if row.get(key) is not None)


def build_metrics(
    config: Config | EncodeConfig, train: Images, test: Images, device: torch.device
) -> Metrics:
    """The metrics of metrics.extractor against the split metrics.split. Raises UserError."""
    metrics, classes = config.metrics, config.data.classes
    if metrics.extractor == "classifier":
        return ClassifierMetrics(train, test, classes, metrics)
    check_counts(config, subset_size(metrics, train if metrics.split == "train" else test))
    if metrics.extractor == "i3d":
        return I3DMetrics(train, test, classes, metrics, device)
    return InceptionMetrics(train, test, metrics, device)


def check_metrics(
    config: Config | EncodeConfig, train: Images, test: Images, draws: int, device: torch.device
) -> None:
    """Raises the UserErrors of build_metrics before training; may download Inception's weights.
    draws: how many times metrics.samples images will be measured. FVD prints how long that will take."""
    metrics, unit = config.metrics, example_unit(config.data.shape)
    split = train if metrics.split == "train" else test
    if metrics.reference is not None and metrics.reference > len(split):
        name = "training" if split is train else "test"
        raise UserError(
            f"metrics.reference={metrics.reference}: the {name} split has only {len(split):,} {unit}; give "
            f"at most {len(split)}"
        )
    if metrics.extractor == "classifier":
        return
    check_counts(config, len(split))
    if metrics.statistics not in (None, "reference"):
        features = inception.FEATURES if metrics.extractor == "inception" else i3d.CLASSES
        file = read_statistics_file(metrics.statistics)
        file.check_size(metrics.statistics, features)
        if file.images is not None and metrics.extractor != "inception":
            problem = "it has images and no mu and sigma, which only metrics.extractor=inception can use"
            raise unusable(metrics.statistics, problem)
    if metrics.extractor == "inception":
        load_inception(metrics.weights)
        return
    network = load_i3d(metrics.weights)
    if draws:
        announce_i3d_time(config, network.to(device), train, test, draws, device)


def check_counts(config: Config | EncodeConfig, reference_images: int) -> None:
    """Raises UserError if samples or reference are too few for the distances of a large network."""
    metrics, unit = config.metrics, example_unit(config.data.shape)
    for key in ("samples", "reference"):
        count = getattr(metrics, key)
        if count is not None and count < MIN_IMAGES:
            raise UserError(
                f"metrics.{key}={count}: too few for metrics.extractor={metrics.extractor}; give at least "
                f"{MIN_IMAGES}"
            )
    if reference_images < MIN_IMAGES:
        raise UserError(
            f"data.name={config.data.name}: a reference of {reference_images} {unit} is too small for "
            f"metrics.extractor={metrics.extractor}; add {unit}, at least {MIN_IMAGES} are required"
        )


def announce_i3d_time(
    config: Config | EncodeConfig,
    network: I3D,
    train: Images,
    test: Images,
    draws: int,
    device: torch.device,
) -> None:
    """Times I3D on one clip and prints how long all clips will take."""
    data, samples = config.data, config.metrics.samples
    clip = torch.zeros(1, data.frames, 3, data.pixels, data.pixels, dtype=torch.uint8)
    with torch.inference_mode():
        network(clip.to(device))  # the first pass is slower
        started = time.monotonic()
        network(clip.to(device)).cpu()
    seconds = time.monotonic() - started
    extractor, neighbours = Extractor("i3d", network, device, 1), subset_size(config.metrics, train)
    real = Reference(train, test, config.metrics, extractor, neighbours).examples
    clips = f"{real:,} real clips, once, and {draws} x {samples:,} samples"
    total = f"{format_duration((real + draws * samples) * seconds)} in total"
    fast = "metrics.extractor=classifier is fast"
    print(f"FVD: I3D sees {clips}, at {seconds:.2g} s per clip: {total}; {fast}", file=sys.stderr)
