"""Mean and covariance of the features of a whole set, without holding the features; resumable."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eltlab.common.disk_cache import cache_dir, digest, make_once
from eltlab.common.files import atomic_path
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.evaluation.distances import Statistics
from eltlab.evaluation.features import Extractor

SAVE_EVERY = 2000  # images; a clip counts as its frames


class Moments:
    """Count, mean [F] and scatter Σ (x − mean)(x − mean)ᵀ [F, F] of the features so far, in float64."""

    def __init__(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        self.count, self.mean, self.scatter = count, mean, scatter

    def add(self, features: Tensor) -> "Moments":
        """These and more features [n, F]. Merging centred parts (Chan, Golub and LeVeque 1979) loses no
        digits if the mean is large, as the difference of two sums of squares would."""
        x = features.double().numpy()
        mean = x.mean(0)
        centred, step, total = x - mean, mean - self.mean, self.count + len(x)
        between = np.outer(step, step) * (self.count * len(x) / total)
        scatter = self.scatter + centred.T @ centred + between
        return Moments(total, self.mean + step * (len(x) / total), scatter)

    @property
    def statistics(self) -> Statistics:
        """mu [F] and sigma [F, F], the covariance with n − 1 as in numpy.cov."""
        return {"mu": self.mean, "sigma": self.scatter / (self.count - 1)}

    def save(self, path: Path) -> None:
        with path.open("wb") as file:  # given a path, NumPy would append .npz to the name
            np.savez(file, count=self.count, mean=self.mean, scatter=self.scatter)


def load_moments(path: Path) -> Moments:
    with np.load(path, allow_pickle=False) as saved:
        return Moments(int(saved["count"]), saved["mean"], saved["scatter"])


def streamed_statistics(images: Images, extractor: Extractor) -> Statistics:
    """mu [F] and sigma [F, F], float64, of the features of all images. Computed once and cached.

    The moments are saved every SAVE_EVERY images, and a killed process resumes from there. Parts have
    fixed limits, so a resumed result has the same bits. Raises UserError if an image cannot be read.
    """
    path = cache_dir() / "statistics" / f"{digest(extractor.name, images.hash, len(images))}.npz"
    partial = path.with_suffix(".partial")

    def make(temporary: Path) -> None:
        moments = load_moments(partial) if partial.is_file() else None
        first = moments.count if moments else 0
        with Bar("statistics", len(images), first, example_unit(images.shape)) as bar:
            for features in feature_parts(images, extractor, first, bar):
                start = moments or Moments(0, np.zeros(features.shape[1]), np.zeros((features.shape[1],) * 2))
                moments = start.add(features)
                with atomic_path(partial) as unfinished:
                    moments.save(unfinished)
        assert moments is not None
        moments.save(temporary)

    make_once(path, make)
    partial.unlink(missing_ok=True)
    return load_moments(path).statistics


def feature_parts(images: Images, extractor: Extractor, first: int, bar: Bar) -> Iterator[Tensor]:
    """The features of images `first` onwards, in parts of SAVE_EVERY images, float32 [n, F]."""
    frames = images.shape[0] if len(images.shape) == 4 else 1
    every, count = max(1, SAVE_EVERY // frames), len(images)
    batches = [
        list(range(i, min(i + extractor.batch, start + every, count)))
        for start in range(first, count, every)
        for i in range(start, min(start + every, count), extractor.batch)
    ]
    part: list[Tensor] = []
    for indices, batch in zip(batches, images.read_batches(batches), strict=True):
        part.append(extractor.embed(batch))
        bar.update(indices[-1] + 1)
        if (indices[-1] + 1 - first) % every == 0 or indices[-1] + 1 == count:
            yield torch.cat(part)
            part = []
