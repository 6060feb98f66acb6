"""Values print with their intervals, and sentences say who is ahead, or that the rows cannot tell."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eltlab.analysis.comparison import Value, in_words, mean_difference, mean_over_seeds, with_interval

SEEDS = pd.Series([1.0, 2.0, 4.0])


def test_a_mean_is_a_number_and_prints_with_its_interval() -> None:
    low, high = stats.t.interval(0.95, 2, loc=SEEDS.mean(), scale=stats.sem(SEEDS))
    mean = mean_over_seeds(SEEDS)
    assert mean == SEEDS.mean() and mean < 3 and f"{mean:.1f}" == "2.3"
    assert (mean.low, mean.high, mean.seeds) == (pytest.approx(low), pytest.approx(high), 3)
    assert f"{mean}" == str(mean) == f"2.33 ± {high - SEEDS.mean():.2f}"


def test_one_seed_has_the_standard_error_of_the_measurement_instead() -> None:
    one = mean_over_seeds(SEEDS[:1], 0.25)
    assert str(one) == "1.00 ± 0.25 (se)" and np.isnan(one.low)
    assert str(mean_over_seeds(SEEDS[:1])) == "1.00 (no interval)"


def test_a_difference_is_paired() -> None:
    """A common offset of each seed does not widen the interval."""
    found = mean_difference(SEEDS + 3, SEEDS)
    assert (found, found.low, found.high) == (3, 3, 3) and str(found) == "+3.00 (+3.00 to +3.00)"
    assert mean_difference(SEEDS, SEEDS[1:]).seeds == 2


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((1.05, 1.01, 1.09), "a is behind b: the ratio of their loss is 1.05 (1.01 to 1.09)"),
        ((0.95, 0.91, 0.99), "a is ahead of b: the ratio of their loss is 0.95"),
        ((1.05, 0.99, 1.11), "the rows cannot tell a from b: the ratio of their loss is 1.05"),
        ((1.05, np.nan, np.nan), "a is behind b on the one seed that both have: the ratio"),
    ],
)
def test_a_ratio_in_words(numbers: tuple[float, float, float], said: str) -> None:
    assert in_words("a", "b", "loss", with_interval("{:.2f}", *numbers, 3), 1).startswith(said)


def test_a_difference_in_words() -> None:
    said = in_words("a", "b", "fid_inf", Value(-3.0, -4.0, -2.0, 3, "-3.00 (-4.00 to -2.00)"), 0)
    assert said == "a is ahead of b: the difference of their fid_inf is -3.00 (-4.00 to -2.00)"
