"""Laws from which a test draws as many features or images as it likes; the digits give their shape."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_set import ImageSet
from support.classifier_metrics import classifier_metrics

CLASSES = 10


@cache
def _class_shapes() -> tuple[np.ndarray, np.ndarray]:
    """Means [10, 64] and roots of covariances [10, 64, 64] of the digits' classes, by the classifier."""
    train, test = load_digits()
    features = classifier_metrics(train, test).real.features.double().numpy()
    groups = [features[train.labels.numpy() == label] for label in range(CLASSES)]
    roots = [np.linalg.cholesky(np.cov(group.T) + 1e-3 * np.eye(64)) for group in groups]
    return np.stack([group.mean(0) for group in groups]), np.stack(roots)


class FeatureLaw:
    """A mixture of ten normal laws with the digits' means and covariances, changed by three numbers.

    shift: added to every feature. spread: scales each class about its mean. scale: scales the whole.
    """

    def __init__(self, shift: float = 0.0, spread: float = 1.0, scale: float = 1.0) -> None:
        means, roots = _class_shapes()
        centre = means.mean(0)
        self.means, self.roots = (means - centre) * scale + centre + shift, roots * spread * scale

    def draw(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Features float64 [count, 64] and balanced labels."""
        labels = np.arange(count) % CLASSES
        noise = np.random.default_rng(seed).standard_normal((count, 64))
        features = self.means[labels] + np.einsum("nij,nj->ni", self.roots[labels], noise)
        return torch.from_numpy(features), torch.from_numpy(labels)

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        """The exact mean and covariance of the law."""
        within = (self.roots @ self.roots.transpose(0, 2, 1)).mean(0)
        return {"mu": self.means.mean(0), "sigma": np.cov(self.means.T, bias=True) + within}


def moved_digits(count: int, seed: int, name: str = "moved") -> ImageSet:
    """Digits of balanced classes, each moved by up to a pixel, brightened or darkened, and with noise."""
    digits, _ = load_digits()
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    pools = [torch.nonzero(digits.labels == label).flatten() for label in range(CLASSES)]
    picks = torch.rand(count, generator=generator)
    chosen = torch.stack(
        [pools[c][int(p * len(pools[c]))] for c, p in zip(labels.tolist(), picks, strict=True)]
    )
    images = digits.images[chosen].float()
    # In units of half the image: two pixels of eight are 0.5.
    moves = (torch.rand(count, 2, 1, generator=generator) - 0.5) * 0.5
    affine = torch.cat([torch.eye(2).expand(count, 2, 2), moves], dim=2)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    brightness = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    noise = 8 * torch.randn(images.shape, generator=generator)
    pixels = (moved * brightness + noise).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(name, pixels, labels)
