"""Paired ratios and tests, against scipy's; and which values have ratios."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eltlab.analysis.paired import is_above_zero, ratio_intervals, t_test

NO_ERRORS = pd.Series([np.nan] * 3)


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


def test_a_distance_near_0_has_no_ratio() -> None:
    """Unbiased distances may be below 0. Their mean must be above 0 by half its interval."""
    assert not is_above_zero(pd.Series([-0.1, 5.0, 5.0]), NO_ERRORS, "kd_classifier")
    assert not is_above_zero(pd.Series([0.1, 2.0, 4.0]), NO_ERRORS, "kd_classifier")
    assert is_above_zero(pd.Series([4.9, 5.0, 5.1]), NO_ERRORS, "kd_classifier")
    # The held-out loss is above 0 by definition.
    assert is_above_zero(pd.Series([0.1, 2.0, 4.0]), NO_ERRORS, "heldout_loss")


def test_for_one_seed_the_error_is_that_of_the_measurement() -> None:
    one = pd.Series([1.0])
    assert is_above_zero(one, pd.Series([0.5]), "kid") and not is_above_zero(one, pd.Series([0.52]), "kid")
    assert is_above_zero(one, pd.Series([np.nan]), "kid")
