"""Curves over sampling steps compared at equal MACs per sample."""

import numpy as np
import pytest
from scipy import stats
from support.made_up_rows import table
from support.step_rows import SHIFTS, at_steps, quality, rows

from eltlab.analysis import equal_macs
from eltlab.analysis.step_curves import step_seeds
from eltlab.common.errors import UserError


def test_curves_are_compared_at_equal_macs_and_paired_over_seeds() -> None:
    """elastic@2 in 2 S steps costs what elastic@4 costs in S."""
    found = equal_macs.difference(table(rows()), "elastic@2", "elastic@4", steps=8)
    differences = [quality(2, 16) + 2 * shift - quality(4, 8) - 4 * shift for shift in SHIFTS]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(differences), scale=stats.sem(differences))
    assert (found, found.low, found.high) == tuple(map(pytest.approx, (np.mean(differences), low, high)))
    assert found.seeds == 3
    mean = equal_macs.difference(table(rows()), "elastic@2", "elastic@4")
    expected = [quality(2, 2 * count) - quality(4, count) - 2 * np.mean(SHIFTS) for count in (4, 8, 16)]
    assert mean == pytest.approx(np.mean(expected))


def test_between_numbers_of_steps_quality_is_interpolated_in_log_macs() -> None:
    own = [at_steps("e", count, 4, value) for count, value in ((4, 3.0), (16, 1.0))]
    other = [at_steps("f", count, 4, 0.5) for count in (8, 64)]
    assert equal_macs.difference(table([*own, *other]), "e@4", "f@4") == pytest.approx(2.0 - 0.5)
    with pytest.raises(UserError, match="e@4 has the MACs of f@4 at 8, not at 64"):
        equal_macs.difference(table([*own, *other]), "e@4", "f@4", steps=64)


def test_a_point_that_one_seed_lacks_is_not_compared() -> None:
    found = rows()
    found = [each for each in found if not (each["seed"] == 2 and each["loops"] == 4 and each["steps"] == 8)]
    values = equal_macs.differences(step_seeds(table(found)), "elastic@2", "elastic@4", "kd_classifier")
    assert list(values) == ["4", "16", "mean"] and {value.seeds for value in values.values()} == {3}
