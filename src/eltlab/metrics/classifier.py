"""A small classifier as feature extractor, for images too small for Inception.

Trained once on a training split, cached, known by its hash. It yields fd_classifier (a Fréchet
distance in its feature space, through torch-fidelity) and accuracy (whether a sample is taken for
the class it was drawn for). Neither is FID.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.data.images import ImageSet, to_float
from eltlab.files import cache_dir, digest, make_once
from eltlab.progress import Bar
from eltlab.seeds import fold, generator

FEATURES = 64
RECIPE = (
    "conv32-conv64s2-conv64-fc64, dropout 0.3, AdamW 2e-3 cosine, batches of 64, "
    "the fewer of 40 epochs and 3,000 steps, version 2"
)
EPOCHS, MAX_STEPS, BATCH = 40, 3_000, 64


class Classifier(nn.Module):
    """uint8 images [N, C, H, W] → features [N, 64]; `read` tells the classes out of them."""

    def __init__(self, channels: int, size: int, classes: int) -> None:
        super().__init__()
        side = -(-size // 2)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * side * side, FEATURES),
        )
        self.drop = nn.Dropout(0.3)
        self.logits = nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(to_float(images))

    def read(self, features: Tensor) -> Tensor:
        """Features [N, 64] → logits [N, classes]."""
        return self.logits(F.relu(self.drop(features)))


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


def _train(train: ImageSet, classes: int) -> Classifier:
    model = Classifier(train.images.shape[1], train.images.shape[2], classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    batch = min(BATCH, len(train))
    an_epoch = len(train) // batch
    steps = min(EPOCHS * an_epoch, MAX_STEPS)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with Bar("classifier", steps * batch) as bar:
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
        key = digest(train.hash, classes, RECIPE)
        self.path = cache_dir() / "classifiers" / f"{train.name.replace('/', '-')}-{key}.pt"
        make_once(
            self.path, lambda path: _save(train_classifier(train, classes), path, train, classes)
        )
        self.model = _load(self.path)
        weights = [value.numpy() for value in self.model.state_dict().values()]
        self.hash = digest(*weights)


def _save(model: Classifier, path: Path, train: ImageSet, classes: int) -> None:
    shape = {"channels": train.images.shape[1], "size": train.images.shape[2], "classes": classes}
    torch.save({"shape": shape, "state_dict": model.state_dict()}, path)


def _load(path: Path) -> Classifier:
    saved = torch.load(path, map_location="cpu", weights_only=True)
    model = Classifier(**saved["shape"])
    model.load_state_dict(saved["state_dict"])
    return model.eval()
