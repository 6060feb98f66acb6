"""The classifier's features and distance, what is cached, and the protocol of a number."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.linalg
import torch
from conftest import tiny

from eltlab.data.digits import load_digits
from eltlab.data.images import ImageSet
from eltlab.files import cache_dir, locked
from eltlab.metrics import classifier
from eltlab.metrics.classifier import Classifier, train_classifier
from eltlab.metrics.distances import ClassifierMetrics
from eltlab.metrics.protocol import protocol_id, sampling_protocol


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load_digits()


@pytest.fixture(scope="module")
def metrics(digits) -> ClassifierMetrics:
    """Against the training split; one worker trains the classifier, the others wait for it."""
    train, _ = digits
    with locked(cache_dir() / "classifier.lock"):
        return ClassifierMetrics(train, 10, train)


def noisy(images: torch.Tensor, amount: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(0, 255).round().to(torch.uint8)


def half(split: ImageSet, which: int) -> ImageSet:
    """One of two halves with equal shares of the classes."""
    order = split.labels.sort(stable=True).indices[which::2]
    return ImageSet(split.name, split.images[order], split.labels[order])


# --- the distance ---------------------------------------------------------------------------------


def test_distance_of_the_reference_to_itself_is_zero(digits, metrics):
    train, _ = digits
    assert abs(metrics.measure(train.images, train.labels)["fd_classifier"]) < 0.01


def test_distance_grows_with_noise(digits, metrics):
    train, _ = digits
    values = [
        metrics.measure(noisy(train.images, amount), train.labels)["fd_classifier"]
        for amount in (0, 15, 40, 100)
    ]
    assert values == sorted(values) and values[-1] > 5 * values[1] > 0


def test_two_halves_of_the_data_are_near_and_noise_is_far(digits, metrics):
    train, _ = digits
    halves = ClassifierMetrics(train, 10, half(train, 0))
    assert halves.reference != metrics.reference and halves.extractor == metrics.extractor
    other = half(train, 1)
    near = halves.measure(other.images, other.labels)["fd_classifier"]
    pixels = torch.randint(256, other.images.shape, generator=torch.Generator().manual_seed(0))
    far = halves.measure(pixels.to(torch.uint8), other.labels)["fd_classifier"]
    assert 0 < near < far / 50


def test_the_floor_of_a_reference_is_repeatable(digits, metrics):
    train, _ = digits
    assert 0 < metrics.halves == ClassifierMetrics(train, 10, train).halves


def test_distance_is_frechets_closed_form(digits, metrics):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of the extracted features."""
    train, _ = digits
    images = noisy(train.images[:400], 20)
    with torch.inference_mode():
        a, b = (metrics.classifier.model(x).double().numpy() for x in (images, train.images))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    got = metrics.measure(images, train.labels[:400])["fd_classifier"]
    assert got == pytest.approx(expected, rel=1e-4)


def test_reference_features_are_cached_and_read(digits, metrics, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    first = metrics.measure(train.images[:200], train.labels[:200])
    files = sorted((tmp_path / "features").iterdir())
    assert files
    assert metrics.measure(train.images[:200], train.labels[:200]) == first
    # What is read is the file: moved statistics move the distance by the square of the move.
    statistics = next(path for path in files if "stat-fid" in path.name)
    saved = torch.load(statistics, weights_only=False)
    saved["mu"] = saved["mu"] + 100.0
    torch.save(saved, statistics)
    moved = metrics.measure(train.images[:200], train.labels[:200])
    assert moved["fd_classifier"] > first["fd_classifier"] + 1000


def test_references_do_not_share_cached_features(digits, metrics, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    monkeypatch.setattr(metrics, "reference_set", half(train, 0))
    monkeypatch.setattr(metrics, "reference", "one")
    near = metrics.measure(half(train, 0).images, half(train, 0).labels)["fd_classifier"]
    monkeypatch.setattr(metrics, "reference_set", half(train, 1))
    monkeypatch.setattr(metrics, "reference", "other")
    other = metrics.measure(half(train, 0).images, half(train, 0).labels)["fd_classifier"]
    assert abs(near) < 0.01 < other


# --- the classifier -------------------------------------------------------------------------------


def test_accuracy_on_real_test_digits(digits, metrics):
    _, test = digits
    assert metrics.measure(test.images, test.labels)["accuracy"] > 0.95


def test_accuracy_counts_agreement_with_the_asked_labels(digits, metrics):
    train, _ = digits
    images = train.images[:100]
    with torch.inference_mode():
        said = metrics.classifier.model.classify(images)
    wrong = said.clone()
    wrong[:25] = (wrong[:25] + 1) % 10
    assert metrics.measure(images, said)["accuracy"] == 1
    assert metrics.measure(images, wrong)["accuracy"] == pytest.approx(0.75)


def test_classifier_trains_to_the_same_weights(digits, monkeypatch):
    monkeypatch.setattr(classifier, "EPOCHS", 2)
    part = digits[0].subset(200)
    first = train_classifier(part, 10).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = train_classifier(part, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # And it disturbs nobody: neither the global generator nor the threads.
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 1


def test_classifier_is_trained_once_and_known_by_its_weights(
    digits, metrics, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    part = digits[0].subset(150)
    first = ClassifierMetrics(part, 10, part)
    (path,) = (tmp_path / "classifiers").iterdir()
    written = path.read_bytes()
    again = ClassifierMetrics(part, 10, part)
    assert again.extractor == first.extractor != metrics.extractor
    assert path.read_bytes() == written
    # Other weights in the file are another extractor.
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["logits.bias"] += 1
    torch.save(saved, path)
    assert ClassifierMetrics(part, 10, part).extractor != first.extractor


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 7), (3, 32)])
def test_classifier_takes_any_size(channels, size):
    images = torch.randint(256, (2, channels, size, size), dtype=torch.uint8)
    model = Classifier(channels, size, 5).eval()
    features = model(images)
    assert features.shape == (2, 64) and model.read(features).shape == (2, 5)


# --- the protocol ---------------------------------------------------------------------------------

GIVEN = {"samples": 100, "precision": "32-true", "extractor": "a-1", "reference": "b-2"}
OTHER = {"samples": 101, "precision": "bf16-mixed", "extractor": "a-2", "reference": "b-3"}


def changed(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else value + "-other"


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_protocol_id_changes_with_every_field_but_the_loops(objective):
    sampler = tiny(f"objective={objective}").sampler
    ids = [protocol_id(sampling_protocol(sampler, **GIVEN))]
    for field in fields(sampler):
        if field.name != "loops":
            other = replace(sampler, **{field.name: changed(getattr(sampler, field.name))})
            ids.append(protocol_id(sampling_protocol(other, **GIVEN)))
    for name, value in OTHER.items():
        ids.append(protocol_id(sampling_protocol(sampler, **{**GIVEN, name: value})))
    assert len(ids) >= 10 and len(set(ids)) == len(ids)
    for loops in (2, [1, 2, 3, 4]):
        same = sampling_protocol(replace(sampler, loops=loops), **GIVEN)
        assert protocol_id(same) == ids[0]


def test_protocol_id_does_not_depend_on_the_order_of_its_fields():
    protocol = sampling_protocol(tiny().sampler, **GIVEN)
    assert protocol_id(protocol) == protocol_id(dict(reversed(protocol.items())))
