"""k-means with a cache: the codes of patch codebooks and of codebooks over latents."""

import math
import sys
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from eltlab.common.disk_cache import cache_dir, cached_array, digest
from eltlab.common.errors import UserError
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import ImageSet

# k-means is fitted to at most this many images and values. 2**28 values take 1 GiB in float32.
SAMPLE_IMAGES, SAMPLE_VALUES = 50_000, 2**28


def choose_sample(train: Images) -> ImageSet:
    """The images that k-means is fitted to: the whole split, or a seeded subset if it is too large."""
    limit = min(SAMPLE_IMAGES, SAMPLE_VALUES // math.prod(train.shape))
    return train.subset(min(limit, len(train)))


def fit_codes(
    name: str, identity: tuple, key: str, count: int, kind: str, make_vectors: Callable[[], np.ndarray]
) -> Tensor:
    """The centres of k-means (seed 0), float32 [count, F], from the cache or fitted and cached.

    name, identity: name of the cached file, and everything that the vectors depend on.
    key: the configuration key that gives count. kind: what the vectors are.
    make_vectors: returns float32 [M, F]. Raises UserError if fewer than count vectors are distinct.
    """
    import sklearn

    def fit(file: BinaryIO) -> None:
        vectors = make_vectors()
        distinct = count_distinct(vectors, count)
        if count > distinct:
            raise UserError(
                f"{key}={count}: the training split has {distinct} distinct {kind}; choose at most that many"
            )
        np.save(file, fit_means(vectors, count, kind))

    hashed = digest(*identity, count, sklearn.__version__)
    path = cache_dir() / "codebooks" / f"{name.replace('/', '-')}-{hashed}.npy"
    return torch.from_numpy(cached_array(path, fit))


def fit_means(vectors: np.ndarray, count: int, kind: str) -> np.ndarray:
    """float32 [count, F] of vectors [M, F], at least count of which are distinct."""
    from sklearn.cluster import MiniBatchKMeans

    print(f"k-means: {count} codes for {len(vectors):,} {kind}", file=sys.stderr, flush=True)
    # The labels are not needed, and computing them does not change the centres.
    means = MiniBatchKMeans(count, random_state=0, n_init=3, batch_size=4096, compute_labels=False)
    return means.fit(vectors).cluster_centers_.astype(np.float32)


def count_distinct(vectors: np.ndarray, enough: int) -> int:
    """How many rows are distinct. Stops once there are enough, because sorting all rows is slow."""
    rows = 4 * enough
    while (distinct := len(np.unique(vectors[:rows], axis=0))) < enough and rows < len(vectors):
        rows *= 4
    return distinct
