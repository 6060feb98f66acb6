"""What is measured of drawn samples: one class an extractor, both with one interface."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from eltlab.config import Config, EncodeConfig
from eltlab.data.imagefiles import Images
from eltlab.data.images import ImageSet
from eltlab.errors import UserError
from eltlab.metrics.classifier import CachedClassifier
from eltlab.metrics.distances import (
    PROTOCOL,
    frechet,
    inception_score,
    kernel,
    precision_recall,
    statistics,
)
from eltlab.metrics.features import Extractor, Reference, kept
from eltlab.metrics.inception import check_weights, load_inception
from eltlab.seeds import generator

HALVINGS = 8  # of the reference
MIN_IMAGES = 10  # one for each split of the inception score, and more than k neighbours


class Metrics(Protocol):
    """`extractor` and `reference` name what was measured with, for the protocol."""

    extractor: str
    reference: str

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Columns of a row, of uint8 images [N, C, H, W] drawn for labels [N]."""

    def floor(self) -> dict[str, float]:
        """Columns that say what real images would get, the same for every sample."""

    def headline(self, values: dict[str, float]) -> str:
        """The measured columns in a few words."""


def build_metrics(
    config: Config | EncodeConfig, train: Images, reference: Images, device: torch.device
) -> Metrics:
    """The metrics that the configuration asks for, against reference. Raises UserError."""
    if config.metrics.extractor == "classifier":
        return ClassifierMetrics(train.subset(None), config.data.classes, reference)
    check_counts(config, len(reference))
    return InceptionMetrics(config.metrics.weights, reference, device)


def check_metrics(config: Config | EncodeConfig, train_images: int) -> None:
    """Raises UserError now for what build_metrics would raise after hours of training; cheap, but
    may download Inception's weights."""
    reference = config.metrics.reference
    if reference is not None and reference > train_images:
        raise UserError(
            f"metrics.reference={reference}: the training split has only {train_images:,} images; give "
            f"at most {train_images}"
        )
    if config.metrics.extractor == "inception":
        check_counts(config, train_images)
        check_weights(config)


def check_counts(config: Config | EncodeConfig, train_images: int) -> None:
    """Raises UserError where samples or reference are too few for Inception's distances."""
    metrics = config.metrics
    for key, count in (
        ("metrics.samples", metrics.samples),
        ("metrics.reference", metrics.reference),
    ):
        if count is not None and count < MIN_IMAGES:
            raise UserError(
                f"{key}={count}: too few for metrics.extractor=inception; give at least {MIN_IMAGES}"
            )
    if train_images < MIN_IMAGES:
        raise UserError(
            f"data.name={config.data.name}: a reference of {train_images} images is too small for "
            f"metrics.extractor=inception; add images, at least {MIN_IMAGES} are needed"
        )


class ClassifierMetrics:
    """fd_classifier, the Fréchet distance in the features of a classifier of the training split, and
    whether it takes samples for their classes."""

    def __init__(self, train: ImageSet, classes: int, reference: Images) -> None:
        self.classifier = CachedClassifier(train, classes)
        self.extractor = f"classifier-{self.classifier.hash}"
        # On the CPU always: it is small, and so a number does not depend on the device.
        self.network = Extractor(self.extractor, self.classifier.model, torch.device("cpu"), 256)
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
        key = (f"{HALVINGS} halvings", self.extractor, self.reference)
        return {"fd_halves": float(kept(lambda: np.array(self._halves()), *key))}

    def _halves(self) -> float:
        """Mean over random halvings, balanced over the classes as samples are."""
        features, labels = self.real.features, self.real.set.labels
        distances = []
        for halving in range(HALVINGS):
            order = torch.randperm(len(features), generator=generator(0, "halves", halving))
            order = order[labels[order].argsort(stable=True)]
            halves = [statistics(features[order[first::2]]) for first in (0, 1)]
            distances.append(frechet(*halves))
        return sum(distances) / HALVINGS

    def headline(self, values: dict[str, float]) -> str:
        return f"fd_classifier {values['fd_classifier']:.2f}, accuracy {values['accuracy']:.3f}"


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
