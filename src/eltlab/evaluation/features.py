"""Features of samples and of sets of images. Those of sets are cached."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from eltlab.common.disk_cache import cache_dir, cached_array, digest
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import choose_subset


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


class Subset:
    """A seeded subset of a set, the same as its `subset(count)`, of which only the features are read."""

    def __init__(self, images: Images, count: int, extractor: Extractor) -> None:
        self.images, self.count, self.extractor = images, count, extractor
        everything = np.arange(len(images))
        chosen = everything if count == len(images) else choose_subset(count, len(images), images.name)
        self.indices = chosen.tolist()

    @property
    def labels(self) -> Tensor:
        return self.images.labels[self.indices]

    def features(self) -> Tensor:
        """float32 [count, F], extracted once and then read from the cache. Raises UserError."""

        def extract() -> np.ndarray:
            batch = self.extractor.batch
            batches = [self.indices[i : i + batch] for i in range(0, self.count, batch)]
            unit = example_unit(self.images.shape)
            parts = self.images.read_batches(batches)
            return self.extractor.extract(parts, self.count, "reference features", unit).numpy()

        # Keyed by the pixels themselves: a file may be replaced by one of the same name and size.
        key = (self.extractor.name, self.images.hash, f"{self.count} images")
        return torch.from_numpy(load_or_make(extract, "features", *key))


def load_or_make(make: Callable[[], np.ndarray], *key: str) -> np.ndarray:
    """The array that make returned the first time this key was given, from cache_dir()/features."""
    path = cache_dir() / "features" / f"{digest(*key)}.npy"
    return cached_array(path, lambda file: np.save(file, make()))
