"""What is measured of drawn samples: one class an extractor, all with one interface."""

import sys
import time
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.seeds import generator
from eltlab.common.text import example_unit, format_duration
from eltlab.config.schema import Config, EncodeConfig
from eltlab.data.images.image_files import Images, part_of
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation.classifier import CachedClassifier, examples
from eltlab.evaluation.distances import (
    PROTOCOL,
    frechet,
    inception_score,
    kernel,
    precision_recall,
    statistics,
)
from eltlab.evaluation.features import Extractor, Reference, kept
from eltlab.evaluation.i3d import I3D, load_i3d
from eltlab.evaluation.inception import Inception, load_inception

HALVINGS = 8  # of the reference
CLIPS_AT_ONCE = 1  # larger batches are no faster on a CPU
MIN_IMAGES = 10  # one for each split of the inception score, and more than k neighbours


class Metrics(Protocol):
    """`extractor` and `reference` name what was measured with, for the protocol."""

    extractor: str
    reference: str

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Columns of a row, of uint8 images [N, C, H, W] or clips [N, F, C, H, W] drawn for labels [N]."""

    def floor(self) -> dict[str, float]:
        """Columns that say what real images would get, the same for every sample."""

    def headline(self, values: dict[str, float]) -> str:
        """The measured columns in a few words."""


def build_metrics(
    config: Config | EncodeConfig, train: Images, reference: Images, device: torch.device
) -> Metrics:
    """The metrics that the configuration asks for, against reference. Raises UserError."""
    if config.metrics.extractor == "classifier":
        return ClassifierMetrics(examples(train), config.data.classes, reference)
    check_counts(config, len(reference))
    if config.metrics.extractor == "i3d":
        return I3DMetrics(config, train, reference, device)
    return InceptionMetrics(config.metrics.weights, reference, device)


def check_metrics(
    config: Config | EncodeConfig, train_images: int, draws: int, device: torch.device
) -> None:
    """Raises UserError now for what build_metrics would raise after hours of training; cheap, but
    may download Inception's weights. Of I3D, which is slow, it says how long that will take.

    draws: how often as many as metrics.samples are measured; 0: all is measured already.
    """
    reference, unit = config.metrics.reference, example_unit(config.data.shape)
    if reference is not None and reference > train_images:
        raise UserError(
            f"metrics.reference={reference}: the training split has only {train_images:,} {unit}; give "
            f"at most {train_images}"
        )
    if config.metrics.extractor != "classifier":
        check_counts(config, train_images)
        network = load_network(config)
        if isinstance(network, I3D) and draws:
            foretell(config, network.to(device), train_images, draws, device)


def check_counts(config: Config | EncodeConfig, train_images: int) -> None:
    """Raises UserError where samples or reference are too few for the distances of a large network."""
    metrics, what = config.metrics, example_unit(config.data.shape)
    for key, count in (
        ("metrics.samples", metrics.samples),
        ("metrics.reference", metrics.reference),
    ):
        if count is not None and count < MIN_IMAGES:
            raise UserError(
                f"{key}={count}: too few for metrics.extractor={metrics.extractor}; give at least "
                f"{MIN_IMAGES}"
            )
    if train_images < MIN_IMAGES:
        raise UserError(
            f"data.name={config.data.name}: a reference of {train_images} {what} is too small for "
            f"metrics.extractor={metrics.extractor}; add {what}, at least {MIN_IMAGES} are needed"
        )


def foretell(
    config: Config | EncodeConfig, network: I3D, train_images: int, draws: int, device: torch.device
) -> None:
    """Says how long I3D will take, by the time of a clip."""
    data, metrics = config.data, config.metrics
    clip = torch.zeros(1, data.frames, 3, data.pixels, data.pixels, dtype=torch.uint8)
    with torch.inference_mode():
        network(clip.to(device))  # the first is slower
        started = time.monotonic()
        network(clip.to(device)).cpu()
    seconds = time.monotonic() - started
    reference = metrics.reference or train_images
    clips = reference + draws * metrics.samples
    print(
        f"FVD: I3D sees {reference:,} real clips, once, and {draws} x {metrics.samples:,} made ones at "
        f"{seconds:.2g} s a clip, {format_duration(clips * seconds)} in all; "
        "metrics.extractor=classifier is quick",
        file=sys.stderr,
    )


def load_network(config: Config | EncodeConfig) -> Inception | I3D:
    """The network of metrics.extractor=inception or i3d. Raises UserError where it has no weights."""
    load = load_i3d if config.metrics.extractor == "i3d" else load_inception
    return load(config.metrics.weights)


class ClassifierMetrics:
    """fd_classifier, the Fréchet distance in the features of a classifier of the training split, and
    whether it takes samples for their classes."""

    def __init__(self, train: ImageSet, classes: int, reference: Images) -> None:
        self.classifier = CachedClassifier(train, classes)
        self.extractor = f"classifier-{self.classifier.hash}"
        # On the CPU always: it is small, and so a number does not depend on the device.
        batch = part_of(reference.shape)
        self.network = Extractor(self.extractor, self.classifier.model, torch.device("cpu"), batch)
        self.real = Reference(reference, self.network)
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.network.features(images)
        with torch.inference_mode():
            right = self.classifier.model.read(features).argmax(dim=1) == labels
        return {
            "fd_classifier": frechet(statistics(features), self.real.statistics),
            "accuracy": right.float().mean().item(),
        }

    def floor(self) -> dict[str, float]:
        """fd_classifier between two halves of the reference: what two draws of real data differ by."""
        return {"fd_halves": halves(self.real)}

    def headline(self, values: dict[str, float]) -> str:
        return f"fd_classifier {values['fd_classifier']:.2f}, accuracy {values['accuracy']:.3f}"


class I3DMetrics:
    """FVD, the Fréchet distance in I3D's logits (Unterthiner et al. 2018), and beside it what the
    classifier says."""

    def __init__(
        self, config: Config | EncodeConfig, train: Images, reference: Images, device: torch.device
    ) -> None:
        network = load_network(config)
        self.network = Extractor(network.name, network, device, CLIPS_AT_ONCE)
        self.real = Reference(reference, self.network)
        self.proxy = ClassifierMetrics(examples(train), config.data.classes, reference)
        self.extractor = f"{network.name}; {self.proxy.extractor}"
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        fvd = frechet(statistics(self.network.features(images)), self.real.statistics)
        return {"fvd": fvd} | self.proxy.measure(images, labels)

    def floor(self) -> dict[str, float]:
        """FVD and fd_classifier between two halves of the reference."""
        return {"fvd_halves": halves(self.real)} | self.proxy.floor()

    def headline(self, values: dict[str, float]) -> str:
        return f"fvd {values['fvd']:.1f}, {self.proxy.headline(values)}"


class InceptionMetrics:
    """FID, KID, precision and recall, and the inception score where the weights have its layer."""

    def __init__(self, weights: str | None, reference: Images, device: torch.device) -> None:
        self.inception = load_inception(weights)
        self.extractor = f"{self.inception.name}, {PROTOCOL}"
        if self.inception.has_classes:
            self.extractor += f", classes {self.inception.class_hash}"
        # Batches of 25: larger ones are no faster on a CPU.
        self.network = Extractor(self.extractor, self.inception, device, 25)
        self.real = Reference(reference, self.network)
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.network.features(images)
        precision, recall = precision_recall(features, self.real.features)
        values = {
            "fid": frechet(statistics(features), self.real.statistics),
            "kid": kernel(features, self.real.features),
            "precision": precision,
            "recall": recall,
        }
        if self.inception.has_classes:
            values["isc"] = inception_score(self.inception.logits(features))
        return values

    def floor(self) -> dict[str, float]:
        return {}

    def headline(self, values: dict[str, float]) -> str:
        return (
            f"fid {values['fid']:.2f}, kid {values['kid']:.4f}, "
            f"precision {values['precision']:.3f}, recall {values['recall']:.3f}"
        )


def halves(real: Reference) -> float:
    """The distance between two halves of a reference, kept: the mean over random halvings, balanced over
    the classes as samples are."""
    key = (f"{HALVINGS} halvings", real.extractor.name, real.key)
    return float(kept(lambda: np.array(_halves(real.features, real.set.labels)), *key))


def _halves(features: Tensor, labels: Tensor) -> float:
    distances = []
    for halving in range(HALVINGS):
        order = torch.randperm(len(features), generator=generator(0, "halves", halving))
        order = order[labels[order].argsort(stable=True)]
        distances.append(frechet(*(statistics(features[order[first::2]]) for first in (0, 1))))
    return sum(distances) / HALVINGS
