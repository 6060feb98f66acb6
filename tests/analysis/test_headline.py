"""The headline table: which arm is whose twin, and their ratio."""

import numpy as np
import pandas as pd
import pytest
from support.made_up_rows import arm, row, table, unique

from eltlab.analysis import headline
from eltlab.common.errors import UserError


def test_small_distances_keep_their_digits() -> None:
    rows = table([row("a", 4, 0.0032, seed=s) for s in (0, 1)])
    assert "0.0032 ± 0.0000" in headline.headline_rows(headline.headline(rows), "fid")[1]


def test_the_twin_is_the_unique_layer_arm_of_equal_width_and_depth() -> None:
    rows = table([
        *arm("elastic", {2: 30.0, 4: 20.0}),
        *unique("twin", 8, 16.0),
        *unique("short", 4, 40.0),
        *unique("wide", 8, 1.0, width=128),
    ])  # fmt: skip
    lines = headline.headline(rows).set_index("arm")
    assert lines.loc["elastic", "twin"] == "twin" and lines.loc["elastic", "ratio"] == 1.25
    assert pd.isna(lines.loc["twin", "twin"]) and np.isnan(lines.loc["twin", "ratio"])
    assert len(lines) == 4  # one line per arm: the elastic one at four loops


@pytest.mark.parametrize(
    "other", [{"images_seen": 99, "train_flops_total": 9e9}, {"objective": "masked"}, {"data": "x"}]
)
def test_an_arm_trained_differently_is_no_twin(other: dict) -> None:
    rows = [*arm("elastic", {4: 20.0}), *unique("twin", 8, 10.0)]
    assert headline.headline(table(rows))["ratio"][0] == 2.0
    rows[-1] |= other
    assert headline.headline(table(rows))["twin"].isna().all()


def test_the_ratio_is_over_shared_seeds() -> None:
    rows = [*arm("e", {4: 20.0}), *arm("e", {4: 99.0}, seed=1), *unique("twin", 8, 10.0)]
    assert headline.headline(table(rows))["ratio"][0] == 2.0
    strangers = [*arm("e", {4: 20.0}), *unique("twin", 8, 10.0, seed=3)]
    assert np.isnan(headline.headline(table(strangers))["ratio"][0])


def test_without_the_trained_loop_count_there_is_no_headline() -> None:
    with pytest.raises(UserError, match="no arm was measured at the loop count it was trained for"):
        headline.headline(table(arm("e", {2: 20.0})))


def test_two_possible_twins_are_no_twin() -> None:
    rows = table([*arm("elastic", {4: 20.0}), *unique("t", 8, 16.0), *unique("u", 8, 17.0)])
    assert headline.headline(rows)["twin"].isna().all()
