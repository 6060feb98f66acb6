"""Curves over sampling steps: their points, names and front."""

import numpy as np
import pytest
from scipy import stats
from support.made_up_rows import table
from support.step_rows import SHIFTS, STEPS, quality, rows

from eltlab.analysis import step_curves
from eltlab.common.errors import UserError


def test_a_point_is_a_curve_at_a_number_of_steps() -> None:
    found = step_curves.step_points(table(rows()))
    curves = ["elastic@1", "elastic@2", "elastic@4", "elastic 4to1", "elastic halting 0.1", "twin"]
    assert list(found["arm"].unique()) == curves and len(found) == len(curves) * len(STEPS)
    line = found[(found["arm"] == "elastic@2") & (found["steps"] == 16)].squeeze()
    values = [quality(2, 16) + 2 * shift for shift in SHIFTS]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert line["kd_classifier"] == pytest.approx(np.mean(values)) and line["seeds"] == 3
    assert line["plus_minus"] == pytest.approx((high - low) / 2) and line["macs_per_sample"] == 2e6 * 2 * 16


def test_the_front_has_the_points_that_nothing_beats_at_as_few_macs() -> None:
    found = step_curves.step_points(table(rows()))
    for line in found.itertuples():
        beaten = found[found["macs_per_sample"] <= line.macs_per_sample]
        beaten = beaten[beaten["kd_classifier"] < line.kd_classifier]
        assert line.front == beaten.empty
    assert {"elastic@1", "twin"} <= set(found.loc[found["front"], "arm"])


def test_only_unbiased_distances_of_samples_are_compared() -> None:
    for metric in ("heldout_loss", "fd_classifier"):
        with pytest.raises(UserError, match=f"metric={metric}: steps are compared by kd_classifier"):
            step_curves.step_points(table(rows()), metric)
