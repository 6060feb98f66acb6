"""Streamed mean and covariance are those of all features at once, and survive a kill."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from support.classifier_metrics import CPU
from support.commands import Command, appended_file, fork
from torch import Tensor, nn

from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation import streamed_statistics as streamed
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.streamed_statistics import Moments, streamed_statistics


class FarPixels(nn.Module):
    """The first pixels, far from zero. calls: the images of each call; at `die_at` of them, SIGKILL."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.die_at = die_at

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        if self.die_at is not None and sum(self.calls) > self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return images.flatten(1)[:, :12].float() + 1000


def random_images(count: int, *shape: int) -> ImageSet:
    pixels = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0))
    return ImageSet("random", pixels.to(torch.uint8), torch.zeros(count, dtype=torch.long))


def expected(images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    features = FarPixels()(images.images).double().numpy()
    return features.mean(0), np.cov(features, rowvar=False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "own"))
    return tmp_path / "own" / "statistics"


@pytest.mark.parametrize("count", [2, 99, 100, 101, 357])
def test_statistics_equal_those_of_all_features_at_once(count, monkeypatch):
    monkeypatch.setattr(streamed, "SAVE_EVERY", 100)
    images, network = random_images(count, 1, 4, 4), FarPixels()
    found = streamed_statistics(images, Extractor("far", network, CPU, 30))
    mean, covariance = expected(images)
    assert sum(network.calls) == count and max(network.calls) <= 30
    np.testing.assert_allclose(found["mu"], mean, rtol=1e-12)
    np.testing.assert_allclose(found["sigma"], covariance, rtol=1e-10, atol=1e-10 * covariance.max())


def test_a_large_mean_costs_no_digits():
    """The variance is 1e-16 of the squared mean: a difference of sums of squares would keep none of it."""
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e8
    moments = Moments(0, np.zeros(3), np.zeros((3, 3)))
    for part in values.split(77):
        moments = moments.add(part)
    np.testing.assert_allclose(moments.statistics["sigma"], np.cov(values.T), rtol=1e-6, atol=1e-6)


def test_statistics_are_computed_once_per_pixels_and_network(cache):
    images, network = random_images(50, 1, 4, 4), FarPixels()
    first = streamed_statistics(images, Extractor("far", network, CPU, 30))
    again = streamed_statistics(images, Extractor("far", network, CPU, 30))
    assert network.calls == [30, 20] and np.array_equal(first["sigma"], again["sigma"])
    other = ImageSet("random", 255 - images.images, images.labels, origin=images.origin)
    assert (streamed_statistics(other, Extractor("far", network, CPU, 30))["mu"] != first["mu"]).all()
    streamed_statistics(images, Extractor("farther", network, CPU, 30))
    assert len(list(cache.glob("*.npz"))) == 3 and not list(cache.glob("*.partial"))


def test_clips_are_saved_as_often_as_their_frames(monkeypatch):
    monkeypatch.setattr(streamed, "SAVE_EVERY", 100)
    network = FarPixels()
    streamed_statistics(random_images(25, 10, 1, 4, 4), Extractor("far", network, CPU, 7))
    assert network.calls == [7, 3, 7, 3, 5]


@pytest.mark.integration
def test_a_killed_process_resumes_where_it_saved(cache, monkeypatch):
    monkeypatch.setattr(streamed, "SAVE_EVERY", 100)
    images = random_images(357, 1, 4, 4)

    def work() -> None:
        streamed_statistics(images, Extractor("far", FarPixels(die_at=250), CPU, 30))

    output = appended_file()
    process = Command(fork(work, {1: output, 2: output}, False), output, output)
    assert process.wait() == -signal.SIGKILL, process.output()
    assert list(cache.glob("*.partial")) and not list(cache.glob("*.npz"))
    network = FarPixels()
    resumed = streamed_statistics(images, Extractor("far", network, CPU, 30))
    assert sum(network.calls) == 157  # 200 were saved
    assert not list(cache.glob("*.partial"))
    monkeypatch.setenv("ELTLAB_CACHE", f"{cache}-of-another")
    at_once = streamed_statistics(images, Extractor("far", FarPixels(), CPU, 30))
    assert all(np.array_equal(resumed[key], at_once[key]) for key in ("mu", "sigma"))
