"""Mean and covariance from an .npz file: those of pytorch-fid, and ADM's reference batches.

pytorch-fid stores mu and sigma. ADM's files (Dhariwal and Nichol 2021, guided-diffusion/evaluations) also
hold images, arr_0, uint8 [N, H, W, C]; some hold only these.
"""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation.distances import Statistics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.streamed_statistics import streamed_statistics

FIX = "give an .npz file with mu and sigma, as pytorch-fid and ADM write them, or remove the key"


class StatisticsFile(NamedTuple):
    """The arrays of a file: mu and sigma, or images."""

    statistics: Statistics | None
    images: ImageSet | None

    @property
    def hash(self) -> str:
        if self.images is not None:
            return self.images.hash
        assert self.statistics is not None
        return digest(self.statistics["mu"], self.statistics["sigma"])

    def measure(self, extractor: Extractor) -> Statistics:
        """mu [F] and sigma [F, F], float64; of images by this extractor, cached."""
        if self.images is not None:
            return streamed_statistics(self.images, extractor)
        assert self.statistics is not None
        return self.statistics

    def check_size(self, path: str, features: int) -> None:
        """Raises UserError if the statistics are those of a network with another number of features."""
        if self.statistics is not None and len(self.statistics["mu"]) != features:
            raise unusable(path, f"its mu has {len(self.statistics['mu'])} values, not {features}")


def read_statistics_file(path: str) -> StatisticsFile:
    """The file that metrics.statistics names. Raises UserError."""
    try:
        with np.load(Path(path), allow_pickle=False) as arrays:
            if "mu" in arrays and "sigma" in arrays:
                found = {key: np.asarray(arrays[key], dtype=np.float64) for key in ("mu", "sigma")}
                return StatisticsFile(checked(found, path), None)
            if "arr_0" in arrays:
                return StatisticsFile(None, as_images(arrays["arr_0"], path))
    except FileNotFoundError:
        raise unusable(path, "there is no such file") from None
    # np.load returns a bare array for .npy files, which is no context manager.
    except (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile):
        raise unusable(path, "not a readable .npz file of arrays") from None
    raise unusable(path, "it has no mu and sigma")


def checked(found: Statistics, path: str) -> Statistics:
    mu, sigma = found["mu"], found["sigma"]
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"mu has shape {list(mu.shape)} and sigma {list(sigma.shape)}"
        raise unusable(path, f"{shapes}, not [F] and [F, F]")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise unusable(path, "it has values that are not finite")
    # Files in float32 are symmetric up to rounding.
    if (
        not np.allclose(sigma, sigma.T, rtol=1e-4, atol=1e-6 * np.abs(sigma).max())
        or (sigma.diagonal() < 0).any()
    ):
        raise unusable(path, "sigma is not a covariance (not symmetric, or a variance below 0)")
    return {"mu": mu, "sigma": (sigma + sigma.T) / 2}


def as_images(pixels: np.ndarray, path: str) -> ImageSet:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or len(pixels) < 2:
        shape = f"{pixels.dtype} {list(pixels.shape)}"
        raise unusable(path, f"it has no mu and sigma, and arr_0 is {shape}, not uint8 [N, H, W, 3]")
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return ImageSet("arr_0", images, torch.zeros(len(pixels), dtype=torch.long))


def unusable(path: str, problem: str) -> UserError:
    return UserError(f"metrics.statistics={path}: {problem}; {FIX}")
