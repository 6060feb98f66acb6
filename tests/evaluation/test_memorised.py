"""Memorised samples are those closer to a training image than new images are."""

import numpy as np
import pytest
import torch
from support.classifier_metrics import classifier_metrics
from support.image_laws import FeatureLaw

from eltlab.evaluation import memorised as module
from eltlab.evaluation.memorised import closeness_limit, memorised, nearest


@pytest.mark.parametrize("chunk", [1, 2**27])
def test_the_nearest_is_found_in_chunks(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(count, 7, generator=generator) for count in (23, 31))
    expected = torch.cdist(one.double(), other.double()).min(1).values.square()
    np.testing.assert_allclose(nearest(one, other), expected, rtol=1e-9)
    assert nearest(one, one).max() < 1e-12


@pytest.mark.parametrize("count", [200, 1000, 5000])
def test_new_samples_are_memorised_at_five_percent(count):
    """Done for the law of the features; test_reference.py does it for images."""
    train, test = (FeatureLaw().draw(2000, seed)[0] for seed in (1, 2))
    limit = closeness_limit(test, train)
    repeats = max(1, 2000 // count)
    found = [memorised(FeatureLaw().draw(count, 10 + i)[0], train, limit) for i in range(repeats)]
    assert np.mean(found) == pytest.approx(0.05, abs=0.02)


def test_copies_are_memorised_and_noise_is_not(digits, digit_metrics):
    train, test = digits
    noise = torch.randint(256, (50, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    copies, half_copies = train.images[::20][:50], torch.cat([train.images[::20][:25], noise[:25]])
    labels = torch.arange(50) % 10
    values = [digit_metrics.measure(x, labels)["memorised"] for x in (copies, half_copies, noise)]
    assert values == [1, 0.5, 0]
    assert digit_metrics.measure(test.images, test.labels)["memorised"] == pytest.approx(0.05, abs=0.005)
    # The same images, if the reference is the test split: memorised is about the training images.
    against_test = classifier_metrics(train, test, split="test")
    assert against_test.measure(copies, labels)["memorised"] == 1
