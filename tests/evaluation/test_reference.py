"""What samples are compared with: the split, its statistics, and the images that are compared one by one."""

import numpy as np
import pytest
from support.classifier_metrics import CPU, classifier_metrics, inception_metrics
from support.image_laws import moved_digits
from support.small_inception import Small

from eltlab.config.schema import MetricsConfig
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation import reference as module
from eltlab.evaluation.distances import statistics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.reference import Reference, subset_size


def reference_of(train: ImageSet, test: ImageSet, **keys: object) -> Reference:
    return Reference(train, test, MetricsConfig(**keys), Extractor("small", Small(False), CPU, 100), 300)


def test_the_name_says_what_is_compared(digits):
    train, test = digits
    whole, other = f"digits/train-1442-{train.origin}", f"digits/test-355-{test.origin}"
    near = f"; memorised: 300 of {whole}, limit from 300 of {other}"
    names = {
        reference_of(train, test).name: whole,
        reference_of(train, test, reference=1442).name: whole,
        reference_of(train, test, reference=300).name: f"{whole}, pairs with 300",
        reference_of(train, test, reference=300, statistics="reference").name: f"{whole}, 300 of them",
        reference_of(train, test, split="test").name: other,
    }
    assert all(found == expected + near for found, expected in names.items()) and len(names) == 4


def test_at_most_ten_thousand_images_are_compared_one_by_one(digits, monkeypatch):
    train, _ = digits
    assert subset_size(MetricsConfig(), train) == 1442 and subset_size(MetricsConfig(reference=7), train) == 7
    monkeypatch.setattr(module, "DEFAULT_REFERENCE", 1000)
    assert subset_size(MetricsConfig(), train) == 1000


def test_statistics_are_those_of_the_whole_split_unless_the_subset_is_chosen(digits):
    train, test = digits
    pixels = Small(False)(train.images)
    small = {"reference": 300}
    for chosen, features in {
        reference_of(train, test): pixels,
        reference_of(train, test, **small): pixels,
        reference_of(train, test, **small, statistics="reference"): Small(False)(train.subset(300).images),
        reference_of(train, test, split="test"): Small(False)(test.images),
    }.items():
        expected = statistics(features)
        for key in ("mu", "sigma"):
            np.testing.assert_allclose(chosen.statistics[key], expected[key], rtol=1e-9, atol=1e-9)


def test_the_network_sees_each_image_set_once(digits):
    train, test = digits
    assert reference_of(train, test, reference=300).examples == 300 + 300 + 1442  # train, test, statistics
    assert reference_of(train, test, reference=300, statistics="reference").examples == 600
    assert reference_of(train, test).examples == 1442 + 300 + 300


@pytest.mark.integration
def test_the_split_changes_distances_and_not_what_is_memorised(small_inception, digits):
    train, test = digits
    images, labels = train.images[:200], train.labels[:200]
    by_classifier = [classifier_metrics(train, test, split=split) for split in ("train", "test")]
    by_inception = [inception_metrics(train, None, test, split=split) for split in ("train", "test")]
    for metrics, distance in ((by_classifier, "fd_classifier"), (by_inception, "fid")):
        one, other = (each.measure(images, labels) for each in metrics)
        assert one[distance] != other[distance] and one["memorised"] == other["memorised"] == 1


def test_ideal_distances_are_cached(digits, digit_metrics, monkeypatch):
    _, test = digits
    first = digit_metrics.real.ideal(test.labels)
    monkeypatch.setattr(module, "ideal_samples", None)
    assert classifier_metrics(*digits).real.ideal(test.labels) == first


@pytest.mark.integration
def test_ideal_samples_are_those_of_the_statistics_that_are_used(digits, tmp_path):
    train, test = digits
    labels = test.labels[:100]
    whole = reference_of(train, test)
    path = tmp_path / "a.npz"
    np.savez(path, **whole.statistics)
    few = {"extractor": "inception", "reference": 100}
    ideals = [
        reference_of(train, test, **keys).ideal(labels).distance
        for keys in ({}, few, few | {"statistics": str(path)}, few | {"statistics": "reference"})
    ]
    whole_split, streamed, read, of_subset = ideals
    assert read == pytest.approx(streamed, rel=1e-6) and streamed == pytest.approx(whole_split, rel=0.15)
    assert of_subset != pytest.approx(streamed, rel=0.01)


def test_ideal_distances_are_cached_by_the_labels_of_the_reference(digits, monkeypatch):
    """The hash of images in files is that of their pixels."""
    train, test = digits
    moved = ImageSet(train.name, train.images, train.labels.roll(1))
    moved.hash = train.hash
    one, other = (reference_of(split, test).ideal(test.labels) for split in (train, moved))
    assert one != other


@pytest.mark.slow
@pytest.mark.parametrize(("count", "repeats"), [(200, 40), (1000, 10), (5000, 3)])
def test_fresh_images_score_as_ideal_samples_do(count, repeats):
    """Through the real classifier: training, test and samples are draws of one law of images."""
    metrics = classifier_metrics(moved_digits(20_000, 1, "train"), moved_digits(5000, 2, "test"))
    drawn = [moved_digits(count, 1000 + i) for i in range(repeats)]
    rows = [metrics.measure(samples.images, samples.labels) for samples in drawn]
    mean, sd = ({key: f([row[key] for row in rows]) for key in rows[0]} for f in (np.mean, np.std))
    print(count, {key: f"{mean[key]:.5f} ± {sd[key]:.5f}" for key in mean})
    close = [abs(row["kd_classifier"]) <= 2 * row["kd_classifier_se"] for row in rows]
    assert np.mean(close) >= 0.9
    # Two standard errors of the mean of noisy estimates, and 1 for the reference's own noise.
    allowed = {key: 1 + 2 * sd[key] / np.sqrt(repeats) for key in sd}
    assert mean["fd_classifier"] == pytest.approx(mean["fd_ideal"], abs=allowed["fd_classifier"])
    assert abs(mean["fd_classifier_inf"]) < allowed["fd_classifier_inf"]
    assert mean["memorised"] == pytest.approx(0.05, abs=0.02)
