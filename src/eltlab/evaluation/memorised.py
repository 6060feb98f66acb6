"""The fraction of samples that are closer to a training image than new images are, in feature space."""

import numpy as np
from torch import Tensor

PERCENTILE = 5  # of the distances of test images: new data have this percentage
PROTOCOL = f"memorised below percentile {PERCENTILE} of test images"
CHUNK_BYTES = 2**27  # of the matrix of distances held at a time


def nearest(features: Tensor, others: Tensor) -> np.ndarray:
    """The squared distance of each feature vector [n, F] to the nearest of the others [m, F], float64 [n]."""
    x, y = features.double().numpy(), others.double().numpy()
    norms, rows = (y**2).sum(1), max(1, CHUNK_BYTES // (8 * len(y)))
    found = [
        (norms - 2 * part @ y.T).min(1) + (part**2).sum(1) for part in np.split(x, range(rows, len(x), rows))
    ]
    return np.concatenate(found).clip(0)


def closeness_limit(test: Tensor, train: Tensor) -> float:
    """The squared distance to the nearest training image below which PERCENTILE % of the test images are."""
    return float(np.percentile(nearest(test, train), PERCENTILE))


def memorised(samples: Tensor, train: Tensor, limit: float) -> float:
    """The fraction of samples below the limit; 0.05 for new data."""
    return float((nearest(samples, train) < limit).mean())
