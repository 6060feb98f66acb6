"""fd_classifier, kd_classifier and accuracy, by a small classifier for clips and for small images.

It is trained once per training split, cached, and identified by its hash. fd_classifier is a Fréchet
distance in its feature space, not FID, and kd_classifier an unbiased kernel distance with a standard error.
Accuracy is the share of samples that it assigns to their class.
"""

import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from eltlab.common.disk_cache import cache_dir, digest, make_once
from eltlab.common.progress import Bar
from eltlab.common.seeds import fold, generator
from eltlab.common.text import example_unit
from eltlab.config.schema import MetricsConfig
from eltlab.data.images.image_files import Images, chunk_size
from eltlab.data.images.image_set import ImageSet, to_float
from eltlab.evaluation import ideal_distance, memorised
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.kernel_distance import kernel_distance
from eltlab.evaluation.reference import Reference

FEATURES = 64
# Part of the extractor's name in a protocol. Features have no natural scale: divided by their mean square in
# the training split, products are of the order of 1, as KID's are in Inception's features.
PROTOCOL = (
    "no resizing, kd (x·y / mean square + 1)³ by class over all pairs, "
    f"{ideal_distance.PROTOCOL}, {memorised.PROTOCOL}"
)
EPOCHS = 40
# The largest training set of the classifier of clips, in clips and in bytes.
MAX_CLIPS, MAX_CLIP_BYTES = 4096, 2**31


class Recipe(NamedTuple):
    text: str  # part of the cache key
    max_steps: int
    batch: int


IMAGE_RECIPE = Recipe(
    "conv32-conv64s2-conv64-fc64, dropout 0.3, AdamW 2e-3 cosine, batches of 64, "
    "the fewer of 40 epochs and 3,000 steps, version 2",
    max_steps=3_000,
    batch=64,
)
CLIP_RECIPE = Recipe(
    "conv32 to 16 a side-conv64s2-conv64 in 3-D, fc64, dropout 0.3, AdamW 2e-3 cosine, batches of 32, "
    "the fewer of 40 epochs and 400 steps, version 1",
    max_steps=400,
    batch=32,
)


class ClassifierMetrics:
    """Always on the CPU: the network is small, and the values do not depend on the device."""

    def __init__(self, train: Images, test: Images, classes: int, metrics: MetricsConfig) -> None:
        seen = training_examples(train)
        self.classifier = load_or_train(seen, classes)
        # Not network_hash, which also covers names.
        weights = [value.numpy() for value in self.classifier.state_dict().values()]
        name = f"classifier-{digest(*weights)}"
        self.extractor = f"{name}, {PROTOCOL}"
        batch = chunk_size(train.shape)
        self.network = Extractor(name, self.classifier, torch.device("cpu"), batch)
        if metrics.statistics != "reference":  # a file of statistics is of another network
            metrics = replace(metrics, statistics=None)
        self.real = Reference(train, test, metrics, self.network, len(seen))
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.network.features(images)
        with torch.inference_mode():
            logits = self.classifier.classify(features)
        # Not validated, because torchmetrics refuses data of one class.
        accuracy = multiclass_accuracy(logits, labels, logits.shape[1], average="micro", validate_args=False)
        distance, error = kernel_distance(
            features, labels, self.real.features, self.real.subset.labels, self.scale
        )
        return {
            **self.real.distances(features, labels, "fd_classifier"),
            "kd_classifier": distance,
            "kd_classifier_se": error,
            "memorised": self.real.memorised(features),
            "accuracy": accuracy.item(),
        }

    @cached_property
    def scale(self) -> float:
        """The mean square norm of the features of the training images."""
        return float(self.real.train.features().double().square().sum(1).mean())


class Classifier(nn.Module):
    """uint8 images [N, C, H, W], or clips [N, F, C, H, W], → features [N, 64]."""

    def __init__(self, channels: int, size: int, classes: int, frames: int = 1) -> None:
        super().__init__()
        self.takes_clips = frames > 1
        self.body = build_body(channels, size, frames)
        self.drop = nn.Dropout(0.3)
        self.logits = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = to_float(images)
        return self.body(x.transpose(1, 2) if self.takes_clips else x)

    def classify(self, features: Tensor) -> Tensor:
        """Features [N, 64] → logits [N, classes]."""
        return self.logits(F.relu(self.drop(features)))


def build_body(channels: int, size: int, frames: int) -> nn.Sequential:
    """Three convolutions and a linear layer: images [N, C, H, W], or clips [N, C, F, H, W], → features."""
    side, positions = -(-size // 2), 1
    first: dict[str, Any] = {"kernel_size": 3}
    if frames > 1:
        # Clips are large, and their classes differ in large shapes and motion: the first layer reduces
        # large frames to 16 to 31 positions per side.
        stride = max(1, size // 16)
        side, positions = -(-(size // stride) // 2), -(-frames // 2)
        first = {"kernel_size": (3, stride + 2, stride + 2), "stride": (1, stride, stride)}
    conv: Any = nn.Conv3d if frames > 1 else nn.Conv2d
    return nn.Sequential(
        conv(channels, 32, **first, padding=1),
        nn.ReLU(),
        conv(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        conv(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * positions * side * side, FEATURES),
    )


def training_examples(train: Images) -> ImageSet:
    """What the classifier of a training split sees: all images, or a seeded subset of clips."""
    most = len(train)
    if len(train.shape) == 4:
        most = min(most, MAX_CLIPS, MAX_CLIP_BYTES // math.prod(train.shape))
    return train.subset(most)


def recipe_for(train: ImageSet) -> Recipe:
    return CLIP_RECIPE if len(train.shape) == 4 else IMAGE_RECIPE


def classifier_sizes(train: ImageSet, classes: int) -> dict[str, int]:
    """The arguments of Classifier."""
    *frames, channels, size, _ = train.shape
    sizes = {"channels": channels, "size": size, "classes": classes}
    return sizes | ({"frames": frames[0]} if frames else {})


def load_or_train(train: ImageSet, classes: int) -> Classifier:
    """The classifier of a training split, read from the cache or trained now."""
    key = digest(train.hash, classes, recipe_for(train).text)
    path = cache_dir() / "classifiers" / f"{train.name.replace('/', '-')}-{key}.pt"

    def save(temporary: Path) -> None:
        weights = train_classifier(train, classes).state_dict()
        torch.save({"shape": classifier_sizes(train, classes), "state_dict": weights}, temporary)

    make_once(path, save)
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Classifier(**saved["shape"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()


@torch.random.fork_rng(devices=[])
def train_classifier(train: ImageSet, classes: int) -> Classifier:
    """Trains with one thread and fixed seeds: the same weights on the same kind of machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(fold(0, "classifier"))
    try:
        model = Classifier(**classifier_sizes(train, classes))
        recipe = recipe_for(train)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        batch = min(recipe.batch, len(train))
        steps_per_epoch = len(train) // batch
        steps = min(EPOCHS * steps_per_epoch, recipe.max_steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with Bar("classifier", steps * batch, unit=example_unit(train.shape)) as bar:
            for step in range(steps):
                epoch, place = divmod(step, steps_per_epoch)
                if place == 0:
                    order = torch.randperm(len(train), generator=generator(0, "classifier", epoch))
                chosen = order[place * batch : (place + 1) * batch]
                logits = model.classify(model(train.images[chosen]))
                loss = F.cross_entropy(logits, train.labels[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update((step + 1) * batch)
        return model.eval()
    finally:
        torch.set_num_threads(threads)
