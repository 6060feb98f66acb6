"""Distances between real and noisy images, against closed forms and torch-fidelity's own path."""

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from support.classifier_metrics import classifier_metrics, half, inception_metrics
from support.small_inception import Small
from torch import Tensor, nn
from torch.utils.data import Dataset

from eltlab.evaluation import distances
from eltlab.evaluation.distances import PROTOCOL, kernel, precision_recall


def noisy(images: Tensor, amount: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(0, 255).round().to(torch.uint8)


def fidelity(network: nn.Module, images: Tensor, others: Tensor, **options) -> dict[str, float]:
    """torch-fidelity's own path from images to distances, with this network."""

    class Extractor(torch_fidelity.FeatureExtractorBase):
        get_provided_features_list = staticmethod(lambda: ("features",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "features")
        can_be_compiled = staticmethod(lambda: False)
        get_dummy_input_for_compile = staticmethod(lambda: None)

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.network = network

        def forward(self, images):
            return (self.network(images),)

    name = f"test-{id(network)}"
    if name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, Extractor)
    return torch_fidelity.calculate_metrics(
        input1=Plain(images),
        input2=Plain(others),
        feature_extractor=name,
        **{"fid": True, "kid": True, "prc": True, **options},
        cuda=False,
        batch_size=256,
        save_cpu_ram=True,
        verbose=False,
    )


class Plain(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_distance_of_the_reference_to_itself_is_zero(digits, digit_metrics):
    train, _ = digits
    assert abs(digit_metrics.measure(train.images, train.labels)["fd_classifier"]) < 0.01


def test_distance_grows_with_noise(digits, digit_metrics):
    train, _ = digits
    values = [
        digit_metrics.measure(noisy(train.images, amount), train.labels)["fd_classifier"]
        for amount in (0, 15, 40, 100)
    ]
    assert values == sorted(values) and values[-1] > 5 * values[1] > 0


@pytest.mark.integration
def test_halves_of_the_data_are_close_and_noise_is_far(digits, digit_metrics):
    train, _ = digits
    halves = classifier_metrics(half(train, 0))
    assert halves.reference != digit_metrics.reference
    other = half(train, 1)
    near = halves.measure(other.images, other.labels)["fd_classifier"]
    pixels = torch.randint(256, other.images.shape, generator=torch.Generator().manual_seed(0))
    far = halves.measure(pixels.to(torch.uint8), other.labels)["fd_classifier"]
    assert 0 < near < far / 50


def test_distance_is_frechets_closed_form(digits, digit_metrics):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of the extracted features."""
    train, _ = digits
    images = noisy(train.images[:400], 20)
    with torch.inference_mode():
        a, b = (digit_metrics.classifier(x).double().numpy() for x in (images, train.images))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    got = digit_metrics.measure(images, train.labels[:400])["fd_classifier"]
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.integration
def test_distances_equal_those_of_torch_fidelity_from_images(digits, digit_metrics):
    train, _ = digits
    images, model = noisy(train.images[:300], 20), digit_metrics.classifier
    expected = fidelity(model, images, train.images, kid_subset_size=300)
    features, real = digit_metrics.network.features(images), digit_metrics.real.features
    assert digit_metrics.measure(images, train.labels[:300])["fd_classifier"] == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-6
    )
    assert kernel(features, real) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    # This would fail if samples and reference were swapped.
    assert expected["precision"] != expected["recall"]
    assert precision_recall(features, real) == (expected["precision"], expected["recall"])


@pytest.mark.parametrize("subsets", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_kid_draws_subsets_of_a_thousand(digits, digit_metrics, subsets, monkeypatch):
    train, _ = digits
    images, only = noisy(train.images[:1100], 20), {"fid": False, "prc": False, "kid_subsets": subsets}
    expected = fidelity(digit_metrics.classifier, images, train.images, kid_subset_size=1000, **only)
    assert distances.KID_SUBSETS == 100
    monkeypatch.setattr(distances, "KID_SUBSETS", subsets)
    got = kernel(digit_metrics.network.features(images), digit_metrics.real.features)
    assert got == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


@pytest.mark.integration
def test_inception_measures_all_its_distances(small_inception, digits):
    train, test = digits
    found = inception_metrics(train, "classes").measure(test.images, test.labels)
    expected = fidelity(Small(True), test.images, train.images, kid_subset_size=len(test))
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], rel=1e-6), ours
    score = torch_fidelity.metric_isc.isc_features_to_metric(Small(True)(test.images)[:, :10])
    assert found["isc"] == pytest.approx(score["inception_score_mean"], rel=1e-6)
    without = inception_metrics(train).measure(test.images, test.labels)
    assert found.keys() - without.keys() == {"isc"}


def test_the_settings_of_distances_are_in_the_extractor(small_inception, digits, monkeypatch):
    train, _ = digits
    extractor = inception_metrics(train).extractor
    assert extractor.startswith(f"small-1, {PROTOCOL}, ideal: ")
    ours = ("n and n/4", "percentile 5", "kid 100x1000 seed 2020", "k 3", "isc 10 splits")
    for setting in (*ours, torch_fidelity.__version__):
        assert setting in extractor
    monkeypatch.setattr(distances, "PROTOCOL", "kid 100x500")
    assert inception_metrics(train).extractor.startswith("small-1, kid 100x500, ideal")
