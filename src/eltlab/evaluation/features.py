"""Features of images, extracted in batches; those of a reference set are kept in the cache."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from eltlab.common.cache import cache_dir, make_once
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.evaluation.distances import Statistics, statistics


class Extractor:
    """A network that takes uint8 [n, C, H, W] to float32 [n, F]; its name has its weights' hash."""

    def __init__(self, name: str, network: nn.Module, device: torch.device, batch: int) -> None:
        self.name, self.network, self.device, self.batch = name, network.to(device), device, batch

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] of samples → float32 [N, F] on the CPU."""
        unit = example_unit(images.shape[1:])
        return self.extract(images.split(self.batch), len(images), "sample features", unit)

    def extract(self, parts: Iterable[Tensor], count: int, label: str, unit: str) -> Tensor:
        """Parts of `batch` images or clips, of `count` in all → float32 [N, F] on the CPU."""
        features, done = [], 0
        # Full float32 on CUDA too: TF32 would make features that depend on the device.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with exact, torch.inference_mode(), Bar(label, count, unit=unit) as bar:
            for part in parts:
                # One order in memory, whatever the images lie in: PyTorch chooses kernels by it.
                plain = part.clone(memory_format=torch.contiguous_format)
                features.append(self.network(plain.to(self.device)).cpu())
                done += len(part)
                bar.update(done)
        return torch.cat(features)


class Reference:
    """What an extractor sees in a reference set: extracted once, and then read from the cache."""

    def __init__(self, images: Images, extractor: Extractor) -> None:
        self.set, self.extractor = images, extractor
        # By its files, where it is of files: the same whether they lie in memory or not.
        self.name = f"{images.name}-{len(images)}-{images.origin}"
        self.key = f"{self.name}-{images.content}"  # what is cached is of these very pixels

    @cached_property
    def features(self) -> Tensor:
        """float32 [N, F]"""
        return torch.from_numpy(kept(self._extract, "features", self.extractor.name, self.key))

    def _extract(self) -> np.ndarray:
        parts = self.set.parts(self.extractor.batch)
        count, unit = len(self.set), example_unit(self.set.shape)
        return self.extractor.extract(parts, count, "reference features", unit).numpy()

    @cached_property
    def statistics(self) -> Statistics:
        return statistics(self.features)


def kept(make: Callable[[], np.ndarray], *key: str) -> np.ndarray:
    """What make gives, made once for a key and then read from cache_dir()/features."""
    path = cache_dir() / "features" / f"{digest(*key)}.npy"

    def save(temporary: Path) -> None:
        made = make()
        with temporary.open("wb") as file:
            np.save(file, made)

    make_once(path, save)
    return np.load(path)
