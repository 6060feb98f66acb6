"""Paired ratios and tests, against scipy's; and which values have ratios."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eltlab.analysis.paired import ratio_intervals, t_test, why_no_logarithm


def test_a_ratio_has_the_t_interval_of_its_logarithms() -> None:
    logs = np.log([0.8, 0.9, 0.85])
    [line] = ratio_intervals(pd.DataFrame({"pair": logs})).itertuples()
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (line.ratio, line.ratio_low, line.ratio_high) == pytest.approx(
        tuple(np.exp([logs.mean(), low, high]))
    )
    assert t_test(pd.DataFrame({"pair": logs})).item() == pytest.approx(stats.ttest_1samp(logs, 0).pvalue)


def test_one_seed_has_a_ratio_without_an_interval() -> None:
    [line] = ratio_intervals(pd.DataFrame({"pair": [np.log(2), np.nan]})).itertuples()
    assert line.ratio == pytest.approx(2) and np.isnan(line.ratio_low)
    assert np.isnan(t_test(pd.DataFrame({"pair": [1.0]})).item())


def seeds_of(values: list[float], error: float = np.nan, metric: str = "kd_classifier") -> pd.DataFrame:
    """The points of an arm, one per seed."""
    return pd.DataFrame({metric: values}).assign(arm="a", requested="4", standard_error=error)


def test_a_distance_near_0_has_no_ratio() -> None:
    """Unbiased distances may be below 0. Their mean must be above 0 by half its interval."""
    for values in ([-0.1, 5.0, 5.0], [0.1, 2.0, 4.0]):
        found = why_no_logarithm(seeds_of(values), "kd_classifier")
        assert found.to_dict() == {"a": "kd_classifier of a is not above 0 by its error"}
    assert why_no_logarithm(seeds_of([4.9, 5.0, 5.1]), "kd_classifier").empty
    # The held-out loss is above 0 by definition.
    assert why_no_logarithm(seeds_of([0.1, 2.0, 4.0], metric="heldout_loss"), "heldout_loss").empty


def test_every_loop_count_of_an_arm_must_be_above_0() -> None:
    both = pd.concat([seeds_of([5.0, 5.1]), seeds_of([-1.0, 5.1]).assign(requested="2")])
    assert list(why_no_logarithm(both, "kd_classifier").index) == ["a"]


def test_for_one_seed_the_error_is_that_of_the_measurement_and_without_one_there_is_no_ratio() -> None:
    assert why_no_logarithm(seeds_of([1.0], 0.5), "kd_classifier").empty
    assert len(why_no_logarithm(seeds_of([1.0], 0.52), "kd_classifier"))
    [reason] = why_no_logarithm(seeds_of([1.0], metric="kid"), "kid")
    assert reason == "kid of a has one seed and no standard error"
    assert why_no_logarithm(seeds_of([1.0], metric="heldout_loss"), "heldout_loss").empty
