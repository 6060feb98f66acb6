"""Ideal samples score what the row says, and other samples are extrapolated without bias too."""

import numpy as np
import pytest
import torch
from support.image_laws import FeatureLaw
from torch import Tensor

from eltlab.evaluation import ideal_distance as module
from eltlab.evaluation.distances import Statistics, frechet, statistics
from eltlab.evaluation.ideal_distance import (
    CovarianceTerm,
    expected_mean,
    extrapolate,
    ideal_samples,
    mean_noise,
)


@pytest.fixture(scope="module")
def reference() -> tuple[Tensor, Tensor]:
    """A large sample of the law."""
    return FeatureLaw().draw(20_000, 0)


def measured(law: FeatureLaw, size: int, repeats: int, reference: tuple[Tensor, Tensor]) -> np.ndarray:
    """The distance and the extrapolated distance of fresh samples [repeats, 2], and the ideal one."""
    against: Statistics = statistics(reference[0])
    term, labels = CovarianceTerm(against), torch.arange(size) % 10
    ideal = ideal_samples(*reference, labels)
    found = []
    for i in range(repeats):
        features, labels = law.draw(size, 1000 + i)
        distance = frechet(statistics(features), against)
        found.append((distance, extrapolate(distance, features, labels, term, ideal), ideal.distance))
    return np.array(found)


@pytest.mark.parametrize("size", [30, 200])
def test_the_covariance_term_is_the_distance_without_the_mean(size):
    """Both with fewer and with more samples than features."""
    x, y = FeatureLaw(spread=1.3).draw(size, 1)[0], FeatureLaw().draw(300, 2)[0]
    one, other = statistics(x), statistics(y)
    expected = frechet(one, other) - ((one["mu"] - other["mu"]) ** 2).sum()
    assert CovarianceTerm(other)(x.numpy()) == pytest.approx(expected, rel=1e-5)


def test_the_noise_of_the_mean_is_that_of_repeated_draws():
    drawn = [FeatureLaw().draw(100, i) for i in range(200)]
    means = np.stack([features.numpy().mean(0) for features, _ in drawn])
    estimates = [mean_noise(features.numpy(), labels.numpy()) for features, labels in drawn]
    assert np.mean(estimates) == pytest.approx(means.var(0, ddof=1).sum(), rel=0.15)
    # Classes with one sample have no variance of their own.
    features, labels = drawn[0]
    with_single = torch.cat([labels[:-1], torch.tensor([99])]).numpy()
    assert mean_noise(features.numpy(), with_single) == pytest.approx(estimates[0], rel=0.1)
    assert mean_noise(features.numpy(), np.arange(100)) > estimates[0]  # the variance of all


def test_ideal_draws_have_the_classes_of_the_samples():
    features = torch.eye(10).repeat_interleave(torch.arange(1, 11), dim=0)  # the class, one-hot
    classes = torch.arange(10).repeat_interleave(torch.arange(1, 11))
    labels = np.array([0, 0, 0, 7, 42])  # the reference has no class 42
    draw = module.ideal_draws(features.numpy(), classes.numpy(), labels)
    assert draw(0)[:4].argmax(1).tolist() == [0, 0, 0, 7]
    assert {int(draw(i)[4].argmax()) for i in range(200)} == set(range(10))
    mean, noise = expected_mean(features.numpy(), classes.numpy(), labels)
    means = np.stack([draw(i).mean(0) for i in range(2000)])
    np.testing.assert_allclose(means.mean(0), mean, atol=0.01)
    assert means.var(0).sum() == pytest.approx(noise, rel=0.1)


@pytest.mark.integration
def test_ideal_samples_score_what_ideal_samples_do(reference, monkeypatch):
    monkeypatch.setattr(module, "VALUES", 1_280_000)
    distances, beyond, (ideal, *_) = measured(FeatureLaw(), 200, 40, reference).T
    assert distances.mean() == pytest.approx(ideal, rel=0.12)
    # Noise: three standard errors of the mean, and that of 100 ideal draws.
    assert abs(beyond.mean()) < 3 * beyond.std() / np.sqrt(40) + 1


@pytest.mark.integration
def test_samples_that_vary_less_are_extrapolated_to_their_closed_form(reference, monkeypatch):
    """Their bias is less than half that of ideal samples: subtracting fd_ideal would be 20 too much."""
    monkeypatch.setattr(module, "VALUES", 1_280_000)
    law = FeatureLaw(spread=0.6)
    true = frechet(law.statistics, FeatureLaw().statistics)
    distances, beyond, (ideal, *_) = measured(law, 200, 40, reference).T
    assert true > 20 and distances.mean() - ideal < true - 10
    assert beyond.mean() == pytest.approx(true, abs=1 + 3 * beyond.std() / np.sqrt(40))


def normal_law(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """128 features, whose labels say nothing, and balanced labels."""
    noise = np.random.default_rng(seed).standard_normal((count, 128))
    return torch.from_numpy(noise * np.arange(1, 129) ** -0.25), torch.arange(count) % 10


def mixture(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return FeatureLaw().draw(count, seed)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("law", "subset", "allowed"),
    [
        (normal_law, 640, 0.02),
        (normal_law, 128, 0.02),  # as many images as features, and so no full rank
        (normal_law, 10, 0.02),  # one image of each class
        (mixture, 640, 0.1),  # one covariance for all classes: 5 %, and noise
        (mixture, 1500, 0.1),  # enough images to draw from
    ],
)
def test_a_subset_scores_as_the_reference_whose_statistics_are_used(law, subset, allowed, monkeypatch):
    monkeypatch.setattr(module, "VALUES", 2_560_000)
    moments, labels = statistics(law(20_000, 0)[0]), torch.arange(64) % 10
    term, found = CovarianceTerm(moments), []
    for i in range(250):
        features = law(64, 100 + i)[0].numpy()
        parts = term.whole_and_quarter(features, labels.numpy())
        found.append((((features.mean(0) - moments["mu"]) ** 2).sum() + parts[0], *parts))
    assert ideal_samples(*law(subset, 1), labels, moments) == pytest.approx(np.mean(found, 0), rel=allowed)


@pytest.mark.parametrize("subset", [2000, 300])
def test_normal_classes_have_the_moments_of_the_reference(reference, subset):
    """And the classes of the law: most of their variance is between them."""
    moments = statistics(reference[0])
    features, classes = (part.numpy() for part in FeatureLaw().draw(subset, 1))
    means, root = module.normal_classes(features, classes, moments)
    np.testing.assert_allclose(means.mean(0), moments["mu"], atol=1e-9)
    found, variance = np.cov(means.T, bias=True) + root @ root, means.var(0).sum()
    np.testing.assert_allclose(found, moments["sigma"], atol=0.02 * np.trace(moments["sigma"]))
    assert (root**2).sum() < variance == pytest.approx(FeatureLaw().means.var(0).sum(), rel=0.1)


def test_it_is_drawn_once_for_a_seed(reference):
    labels = torch.arange(20) % 10
    assert ideal_samples(*reference, labels) == ideal_samples(*reference, labels)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "repeats"), [(200, 400), (1000, 80), (5000, 20)])
def test_ideal_samples_are_within_one_of_zero(reference, size, repeats):
    distances, beyond, (ideal, *_) = measured(FeatureLaw(), size, repeats, reference).T
    print(
        f"n {size}: {distances.mean():.2f}, ideal {ideal:.2f}, inf {beyond.mean():.2f} ± {beyond.std():.2f}"
    )
    assert distances.mean() == pytest.approx(ideal, abs=1)
    assert abs(beyond.mean()) < 1


@pytest.mark.slow
@pytest.mark.parametrize("law", [{"shift": 0.5}, {"spread": 0.6}, {"spread": 1.3}, {"scale": 0.9}])
@pytest.mark.parametrize(("size", "repeats"), [(200, 400), (1000, 80)])
def test_other_laws_are_extrapolated_to_their_closed_form(reference, law, size, repeats):
    true = frechet(FeatureLaw(**law).statistics, FeatureLaw().statistics)
    distances, beyond, _ = measured(FeatureLaw(**law), size, repeats, reference).T
    print(
        f"n {size} {law}: true {true:.2f}, {distances.mean():.2f}, {beyond.mean():.2f} ± {beyond.std():.2f}"
    )
    assert beyond.mean() == pytest.approx(true, abs=1 + 3 * beyond.std() / np.sqrt(repeats))
