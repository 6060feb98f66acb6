"""The kernel distance is unbiased, its error is that of repeated draws, and 0 means equal laws."""

import numpy as np
import pytest
import torch
from support.image_laws import FeatureLaw
from torch import Tensor

from eltlab.evaluation import kernel_distance as module
from eltlab.evaluation.kernel_distance import kernel_distance

SCALE = 1e4  # about the mean square of the features of FeatureLaw


def draws(count: int, size: int, reference: int, law: FeatureLaw) -> tuple[np.ndarray, np.ndarray]:
    """Distances and errors of `count` pairs of fresh samples of the law and a fresh reference."""
    found = []
    for i in range(count):
        samples, against = law.draw(size, 2 * i), FeatureLaw().draw(reference, 2 * i + 1)
        found.append(kernel_distance(*samples, *against, SCALE))
    distances, errors = np.array(found).T
    return distances, errors


def kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / SCALE + 1) ** 3


def test_it_is_the_unbiased_mmd_if_there_is_one_class():
    """Gretton et al. 2012, equation 3, written out."""
    x, y = FeatureLaw().draw(40, 1)[0], FeatureLaw(shift=1).draw(30, 2)[0]
    xx, yy = (kernel(z, z).fill_diagonal_(0).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    expected = float(xx + yy - 2 * kernel(x, y).mean())
    found, _ = kernel_distance(x, torch.zeros(40).long(), y, torch.zeros(30).long(), SCALE)
    assert found == pytest.approx(expected, rel=1e-9)


def test_classes_are_weighted_by_their_share_in_the_samples():
    """The same pairs of classes count in the same way if the reference has ten times as much of one class."""
    x, labels = FeatureLaw().draw(100, 1)
    y, classes = FeatureLaw(shift=1).draw(200, 2)
    expected, _ = kernel_distance(x, labels, y, classes, SCALE)
    again = (
        torch.cat([y, y[classes == 3], y[classes == 3]]),
        torch.cat([classes, *[classes[classes == 3]] * 2]),
    )
    found, error = kernel_distance(x, labels, *again, SCALE)
    assert found == pytest.approx(expected, abs=error / 2) and found != expected


def test_the_order_of_points_and_chunks_change_nothing(monkeypatch):
    x, labels = FeatureLaw().draw(60, 1)
    y, classes = FeatureLaw(shift=1).draw(70, 2)
    expected = kernel_distance(x, labels, y, classes, SCALE)
    monkeypatch.setattr(module, "ROWS_BYTES", 8 * 130 * 7)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert kernel_distance(x[order], labels[order], y, classes, SCALE) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", [(10, 10), (20, 1), (3, 3)])
def test_few_points_per_class_give_a_finite_error(sizes):
    """With one point in each class, the classes are ignored."""
    (x, labels), (y, classes) = FeatureLaw().draw(sizes[0], 1), FeatureLaw().draw(10 * sizes[1], 2)
    found, error = kernel_distance(x, labels, y, classes, SCALE)
    assert np.isfinite(found) and error > 0


def test_ideal_samples_have_distance_zero_within_its_error():
    distances, errors = draws(100, 100, 200, FeatureLaw())
    assert abs(distances.mean()) < 3 * distances.std() / 10
    assert (np.abs(distances) <= 2 * errors).mean() >= 0.93
    assert np.sqrt((errors**2).mean()) == pytest.approx(distances.std(), rel=0.3)


def test_a_shift_is_found_with_its_error():
    distances, errors = draws(60, 200, 300, FeatureLaw(shift=1))
    assert distances.mean() > 5 * distances.std()
    assert np.sqrt((errors**2).mean()) == pytest.approx(distances.std(), rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("law", [{}, {"shift": 0.25}, {"shift": 1.0}, {"spread": 0.6}, {"scale": 1.1}])
@pytest.mark.parametrize("size", [200, 1000])
def test_the_error_is_that_of_repeated_draws(size, law):
    distances, errors = draws(100, size, 1500, FeatureLaw(**law))
    print(f"n {size} {law}: {distances.mean():.5f}, sd {distances.std():.5f}, se {errors.mean():.5f}")
    assert np.sqrt((errors**2).mean()) == pytest.approx(distances.std(), rel=0.3)
    if not law:
        assert abs(distances.mean()) < 3 * distances.std() / 10
        assert (np.abs(distances) <= 2 * errors).mean() >= 0.93
