"""A small classifier as feature extractor, for images too small for Inception and for clips.

Trained once on a training split, cached, known by its hash. It yields fd_classifier (a Fréchet
distance in its feature space, through torch-fidelity) and accuracy (whether a sample is taken for
the class it was drawn for). Neither is FID.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.common.cache import cache_dir, make_once
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.common.seeds import fold, generator
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import ImageSet, to_float

FEATURES = 64
EPOCHS = 40
CLIPS, CLIP_BYTES = 4096, 2**31  # that the classifier of clips is trained on, at most


class Recipe(NamedTuple):
    """How a classifier is trained; the text is part of what it is cached under."""

    text: str
    steps: int  # at most
    batch: int


OF_IMAGES = Recipe(
    "conv32-conv64s2-conv64-fc64, dropout 0.3, AdamW 2e-3 cosine, batches of 64, "
    "the fewer of 40 epochs and 3,000 steps, version 2",
    steps=3_000,
    batch=64,
)
OF_CLIPS = Recipe(
    "conv32 to 16 a side-conv64s2-conv64 in 3-D, fc64, dropout 0.3, AdamW 2e-3 cosine, batches of 32, "
    "the fewer of 40 epochs and 400 steps, version 1",
    steps=400,
    batch=32,
)


class Classifier(nn.Module):
    """uint8 images [N, C, H, W], or clips [N, F, C, H, W], → features [N, 64]; `read` tells the classes
    out of them."""

    def __init__(self, channels: int, size: int, classes: int, frames: int = 1) -> None:
        super().__init__()
        self.of_clips = frames > 1
        self.body = clip_body(frames, channels, size) if self.of_clips else body(channels, size)
        self.drop = nn.Dropout(0.3)
        self.logits = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = to_float(images)
        return self.body(x.transpose(1, 2) if self.of_clips else x)

    def read(self, features: Tensor) -> Tensor:
        """Features [N, 64] → logits [N, classes]."""
        return self.logits(F.relu(self.drop(features)))


def body(channels: int, size: int) -> nn.Sequential:
    side = -(-size // 2)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * side * side, FEATURES),
    )


def clip_body(frames: int, channels: int, size: int) -> nn.Sequential:
    """Of clips [N, C, F, H, W]. The first layer leaves 16 to 31 positions a side of large frames: clips
    are many times what images are, and their classes lie in large shapes and their motion."""
    stride = max(1, size // 16)
    side, times = -(-(size // stride) // 2), -(-frames // 2)
    return nn.Sequential(
        nn.Conv3d(channels, 32, (3, stride + 2, stride + 2), (1, stride, stride), padding=1),
        nn.ReLU(),
        nn.Conv3d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv3d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * times * side * side, FEATURES),
    )


def train_classifier(train: ImageSet, classes: int) -> Classifier:
    """Trains with one thread and fixed seeds: the same weights on the same kind of machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(0, "classifier"))
            return _train(train, classes)
    finally:
        torch.set_num_threads(threads)


def examples(train: Images) -> ImageSet:
    """What the classifier of a training split is trained on: all images, or a seeded subset of clips."""
    most = len(train)
    if len(train.shape) == 4:
        most = min(most, CLIPS, CLIP_BYTES // math.prod(train.shape))
    return train.subset(most)


def sizes(train: ImageSet, classes: int) -> dict[str, int]:
    """Of the classifier of a split."""
    *frames, channels, size, _ = train.shape
    return {"channels": channels, "size": size, "classes": classes} | (
        {"frames": frames[0]} if frames else {}
    )


def recipe_of(train: ImageSet) -> Recipe:
    return OF_CLIPS if len(train.shape) == 4 else OF_IMAGES


def _train(train: ImageSet, classes: int) -> Classifier:
    model = Classifier(**sizes(train, classes))
    recipe = recipe_of(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    batch = min(recipe.batch, len(train))
    an_epoch = len(train) // batch
    steps = min(EPOCHS * an_epoch, recipe.steps)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Bar("classifier", steps * batch, unit=example_unit(train.shape)) as bar:
        for step in range(steps):
            epoch, place = divmod(step, an_epoch)
            if place == 0:
                order = torch.randperm(len(train), generator=generator(0, "classifier", epoch))
            chosen = order[place * batch : (place + 1) * batch]
            logits = model.read(model(train.images[chosen]))
            loss = F.cross_entropy(logits, train.labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update((step + 1) * batch)
    return model.eval()


class CachedClassifier:
    """The classifier of a training split: its weights file, their hash, and the model."""

    def __init__(self, train: ImageSet, classes: int) -> None:
        key = digest(train.hash, classes, recipe_of(train).text)
        self.path = cache_dir() / "classifiers" / f"{train.name.replace('/', '-')}-{key}.pt"
        make_once(
            self.path, lambda path: _save(train_classifier(train, classes), path, train, classes)
        )
        self.model = _load(self.path)
        weights = [value.numpy() for value in self.model.state_dict().values()]
        self.hash = digest(*weights)


def _save(model: Classifier, path: Path, train: ImageSet, classes: int) -> None:
    torch.save({"shape": sizes(train, classes), "state_dict": model.state_dict()}, path)


def _load(path: Path) -> Classifier:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Classifier(**saved["shape"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()
