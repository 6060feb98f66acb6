"""A small classifier as feature extractor, for images too small for Inception.

Trained once on a training split, cached, known by its hash. It yields fd_classifier (a Fréchet
distance in its feature space, through torch-fidelity) and accuracy (whether a sample is taken for
the class it was drawn for). Neither is FID.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from eltlab.data.images import ImageSet, to_float
from eltlab.files import cache_dir, digest, renamed
from eltlab.progress import Bar
from eltlab.seeds import fold, generator

NAME = "eltlab-classifier"
FEATURES = 64
RECIPE = "conv32-conv64s2-conv64-fc64, dropout 0.3, AdamW 2e-3 cosine, 40 epochs of 64, version 1"
EPOCHS, BATCH = 40, 64


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

    def classify(self, images: Tensor) -> Tensor:
        return self.read(self(images)).argmax(dim=1)


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
    steps = EPOCHS * (len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    done = 0
    with Bar("classifier", EPOCHS * len(train)) as bar:
        for epoch in range(EPOCHS):
            order = torch.randperm(len(train), generator=generator(0, "classifier", epoch))
            for batch in order.split(BATCH)[: len(train) // BATCH]:
                logits = model.read(model(train.images[batch]))
                loss = F.cross_entropy(logits, train.labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                done += len(batch)
                bar.update(done)
    return model.eval()


class CachedClassifier:
    """The classifier of a training split: its weights file, their hash, and the model."""

    def __init__(self, train: ImageSet, classes: int) -> None:
        key = digest(train.hash, classes, RECIPE)
        self.path = cache_dir() / "classifiers" / f"{train.name.replace('/', '-')}-{key}.pt"
        if not self.path.is_file():
            with renamed(self.path) as temporary:
                _save(train_classifier(train, classes), temporary, train, classes)
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


class ClassifierExtractor(FeatureExtractorBase):
    """torch-fidelity's interface for custom extractors; the weights come by path."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        assert feature_extractor_weights_path is not None
        self.model = _load(Path(feature_extractor_weights_path))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (str(FEATURES),)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return str(FEATURES)

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        raise NotImplementedError("the classifier is not compiled")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.model(images),)


register_feature_extractor(NAME, ClassifierExtractor)
