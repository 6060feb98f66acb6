"""Features of samples and of a reference set. Those of a reference set are cached."""

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from eltlab.common.disk_cache import cache_dir, cached_array, digest
from eltlab.common.progress import Bar
from eltlab.common.seeds import generator
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.evaluation.distances import Statistics, frechet, statistics

HALVINGS = 8  # of a reference set, for the distance between its halves


class Extractor:
    """A network from uint8 [n, C, H, W], or clips [n, F, C, H, W], to float32 [n, features]."""

    def __init__(self, name: str, network: nn.Module, device: torch.device, batch: int) -> None:
        # The name contains the hash of the weights: it is part of cache keys and of protocols.
        self.name, self.network, self.device, self.batch = name, network.to(device), device, batch

    def features(self, images: Tensor) -> Tensor:
        """The features of samples, float32 [N, features] on the CPU."""
        unit = example_unit(images.shape[1:])
        return self.extract(images.split(self.batch), len(images), "sample features", unit)

    def extract(self, parts: Iterable[Tensor], count: int, label: str, unit: str) -> Tensor:
        """Parts of `batch` images or clips, `count` in total → float32 [count, features] on the CPU."""
        features, done = [], 0
        with Bar(label, count, unit=unit) as bar:
            for part in parts:
                features.append(self.embed(part))
                done += len(part)
                bar.update(done)
        return torch.cat(features)

    def embed(self, images: Tensor) -> Tensor:
        """One batch → float32 [n, features] on the CPU."""
        # Full float32 on CUDA too: with TF32, features would depend on the device.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.inference_mode():
            # One memory format for all images: PyTorch chooses kernels by it, and they differ in bits.
            plain = images.clone(memory_format=torch.contiguous_format)
            return self.network(plain.to(self.device)).cpu()


class Reference:
    """A reference set and its features, which are extracted once and then read from the cache."""

    def __init__(self, images: Images, extractor: Extractor) -> None:
        self.set, self.extractor = images, extractor
        # The origin of images in files is a hash of the files, in memory or not: equal runs get equal ids.
        self.name = f"{images.name}-{len(images)}-{images.origin}"
        self.key = f"{self.name}-{images.hash}"  # the cache also follows the pixels themselves

    @cached_property
    def features(self) -> Tensor:
        """float32 [N, features]"""

        def extract() -> np.ndarray:
            parts = self.set.read_in_order(self.extractor.batch)
            count, unit = len(self.set), example_unit(self.set.shape)
            return self.extractor.extract(parts, count, "reference features", unit).numpy()

        return torch.from_numpy(load_or_make(extract, "features", self.extractor.name, self.key))

    @cached_property
    def statistics(self) -> Statistics:
        return statistics(self.features)

    def distance_between_halves(self) -> float:
        """The Fréchet distance between class-balanced halves, its mean over random halvings. Cached."""
        key = (f"{HALVINGS} halvings", self.extractor.name, self.key)
        return float(load_or_make(self._mean_over_halvings, *key))

    def _mean_over_halvings(self) -> np.ndarray:
        distances = []
        for halving in range(HALVINGS):
            order = torch.randperm(len(self.set), generator=generator(0, "halves", halving))
            order = order[self.set.labels[order].argsort(stable=True)]
            halves = (statistics(self.features[order[first::2]]) for first in (0, 1))
            distances.append(frechet(*halves))
        return np.array(sum(distances) / HALVINGS)


def load_or_make(make: Callable[[], np.ndarray], *key: str) -> np.ndarray:
    """The array that make returned the first time this key was given, from cache_dir()/features."""
    path = cache_dir() / "features" / f"{digest(*key)}.npy"
    return cached_array(path, lambda file: np.save(file, make()))
