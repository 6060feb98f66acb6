"""Fronts, hypervolumes and attainment, compared with known ones."""

from collections.abc import Iterable
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.made_up_rows import STUDY, arm, table

from eltlab.analysis import pareto
from eltlab.analysis.points import points, seed_points
from eltlab.common.errors import UserError


def test_the_front_has_the_points_that_no_other_point_beats() -> None:
    cost = [1, 2, 2, 3, 4, 4]
    distance = [9, 5, 7, 5, 2, 2]
    assert list(pareto.non_dominated(cost, distance)) == [True, True, False, False, True, True]


def test_a_hypervolume_is_the_area_up_to_the_published_corner_in_decades() -> None:
    axes = ("params_total", "fid")  # the corner: 1e11 parameters, FID 1e3
    assert pareto.hypervolume([1e9], [10.0], axes) == pytest.approx(2 * 2)
    # A second point adds the area that the first does not dominate; points dominated or beyond add none.
    two = pareto.hypervolume([1e9, 1e10], [10.0, 1.0], axes)
    assert two == pytest.approx(2 * 2 + 1 * 1)
    assert pareto.hypervolume([1e9, 1e10, 1e10, 1e12], [10.0, 1.0, 20.0, 0.1], axes) == two


def test_the_corner_is_published_and_does_not_move() -> None:
    """Old and new hypervolumes are compared, so values may be added but never changed."""
    assert pareto.REFERENCE == {
        "params_total": 1e11,
        "macs_per_sample": 1e17,
        "train_flops_total": 1e25,
        "heldout_loss": 1e1,
        "fid": 1e3,
        "fid_inf": 1e3,
        "fvd": 1e4,
        "fvd_inf": 1e4,
        "fd_classifier": 1e4,
        "fd_classifier_inf": 1e4,
        "kd_classifier": 1e4,
        "kid": 1e1,
    }


def test_values_without_a_logarithm_are_refused() -> None:
    with pytest.raises(UserError, match=r"params_total and kid: .* above 0"):
        pareto.hypervolume([1e9], [-0.001], ("params_total", "kid"))


def seeds_of(*fronts: dict[int, float]):
    rows = [arm("a", front, seed=seed) for seed, front in enumerate(fronts)]
    return seed_points(table([row for rows_of in rows for row in rows_of]))


def test_attainment_is_what_one_seed_attains_and_what_all_do() -> None:
    seeds = seeds_of({1: 10.0, 2: 6.0}, {1: 12.0, 2: 4.0})
    some, every = pareto.attainment(seeds, "macs_per_sample", "heldout_loss")
    assert some.tolist() == [[2e6, 10.0], [4e6, 4.0]]
    assert every.tolist() == [[2e6, 12.0], [4e6, 6.0]]


@settings(max_examples=20)
@given(st.permutations(range(6)))
def test_attainment_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    check_attainment([order])


@pytest.mark.slow
def test_attainment_does_not_depend_on_any_order_of_rows() -> None:
    check_attainment(map(list, permutations(range(6))))


def check_attainment(orders: Iterable[list[int]]) -> None:
    """moocore gives wrong results unless the points of each set are contiguous."""
    seeds = seeds_of({1: 10.0, 2: 6.0}, {1: 12.0, 2: 4.0}, {1: 11.0, 2: 5.0})
    expected = pareto.attainment(seeds, "macs_per_sample", "heldout_loss")
    for order in orders:
        found = pareto.attainment(seeds.iloc[order], "macs_per_sample", "heldout_loss")
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)), order
    assert expected[1].tolist() == [[2e6, 12.0], [4e6, 6.0]]


def test_fronts_by_kind_of_arm() -> None:
    found = pareto.fronts(STUDY.rename(columns={"heldout_loss": "fid"}))
    macs = found[found["cost"] == "macs_per_sample"].set_index(["kind", "label"])
    assert list(macs.loc["elastic, ILSD"].index) == ["2x4@1", "2x4@2", "2x4"]
    assert list(macs.loc["unique layers"].index) == ["8x1"]  # the other is dominated
    # At equal parameters only the best loop count is on the front.
    params = found[found["cost"] == "params_total"].set_index("kind")
    assert params.loc["elastic, ILSD", "label"] == "2x4" and params.loc["vanilla loop", "fid"] == 18
    # Training FLOPs are equal here, so there is no front for them.
    assert set(found["cost"]) == {"params_total", "macs_per_sample"}
    assert params.loc["unique layers", "hypervolume"] == pytest.approx((11 - np.log10(8000)) * 2)


def test_widths_are_in_the_names_if_they_differ() -> None:
    rows = table([*arm("a", {4: 2.0}), *arm("b", {4: 1.0}, width=128)])
    assert set(pareto.point_labels(points(rows))) == {"w64 2x4", "w128 2x4"}


def test_arms_of_equal_shape_keep_their_own_names() -> None:
    rows = table([*arm("short", {2: 3.0, 4: 2.0}), *arm("long", {4: 1.0})])
    assert list(pareto.point_labels(points(rows))) == ["short@2", "short", "long"]


def test_a_band_uses_the_seeds_that_all_arms_have() -> None:
    rows = [*arm("a", {4: 5.0}), *arm("a", {4: 7.0}, seed=1), *arm("a", {4: 9.0}, seed=2)]
    rows += [*arm("b", {4: 1.0}, layers=3), *arm("b", {4: 2.0}, layers=3, seed=1)]
    assert set(pareto.keep_shared_seeds(seed_points(table(rows)))["seed"]) == {0, 1}
    apart = [*arm("a", {4: 5.0}), *arm("b", {4: 1.0}, layers=3, seed=1)]
    assert pareto.keep_shared_seeds(seed_points(table(apart))).empty
    pareto.draw(table(apart))  # without a band


def test_the_figure_draws_the_fronts() -> None:
    figure = pareto.draw(STUDY)
    left, right = figure.axes
    assert left.get_xlabel() == "parameters" and right.get_xlabel() == "MACs per sample"
    assert "heldout_loss" in left.get_ylabel() and left.get_xscale() == left.get_yscale() == "log"
    drawn = {tuple(dict.fromkeys(line.get_ydata())) for line in right.lines if line.get_linestyle() == "-"}
    for _, front in pareto.fronts(STUDY).query("cost == 'macs_per_sample'").groupby("kind"):
        assert tuple(front["heldout_loss"]) in drawn
    faded = [line for line in right.lines if line.get_alpha() == 0.3]
    assert [list(line.get_ydata()) for line in faded] == [[11.0]]  # only "worse" is dominated in its kind
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names[:3] == ["front of elastic, ILSD", "front of vanilla loop", "front of unique layers"]
    assert names[3:] == ["elastic", "vanilla", "twin", "worse"]
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert "protocol aaaa" in text and "no interval" in text and "matched: training FLOPs" in text


def test_a_band_is_between_the_seeds() -> None:
    rows = [
        *arm("elastic", {1: 80.0, 2: 30.0, 4: 20.0}),
        *arm("elastic", {1: 70.0, 2: 35.0, 4: 22.0}, seed=1),
    ]
    axes = pareto.draw(table(rows)).axes[0]
    [band] = [c for c in axes.collections if c.get_alpha() == 0.12]
    heights = {round(float(y), 6) for y in band.get_paths()[0].vertices[:, 1]}
    assert heights == {70.0, 80.0, 30.0, 35.0, 20.0, 22.0}


def test_a_value_below_0_has_a_front_and_a_figure_but_no_hypervolume() -> None:
    rows = STUDY.rename(columns={"heldout_loss": "kd_classifier"})
    rows.loc[rows["name"] == "twin", "kd_classifier"] = -0.5
    found = pareto.fronts(rows).set_index("kind")
    assert found.loc["unique layers", "hypervolume"].isna().all()
    assert found.loc["elastic, ILSD", "hypervolume"].notna().all()
    assert {axes.get_yscale() for axes in pareto.draw(rows).axes} == {"linear"}


def test_with_one_arm_of_each_kind_the_legend_names_the_kinds() -> None:
    figure = pareto.draw(STUDY[STUDY["name"] != "worse"])
    names = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert names == ["elastic, ILSD", "vanilla loop", "unique layers"]


def test_arms_without_a_name_in_the_legend_are_in_the_caption() -> None:
    rows = [each for n in range(26) for each in arm(f"a{n}", {1: 9.0 + n, 4: 5.0 + n})]
    figure = pareto.draw(table(rows))
    [legend] = figure.legends
    assert len(legend.get_texts()) == 1 + 24
    assert "Without a name: a24, a25" in figure._supxlabel.get_text().replace("\n", " ")
