"""Arms and their points: means, intervals, and what may not be compared."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.made_up_rows import TWO_PROTOCOLS, arm, row, table, unique, vanilla

from eltlab.analysis import ablation, anytime, dynamics, headline, pareto, samples, scaling
from eltlab.analysis.points import arm_kinds, caption, caption_of_sampling, points, seed_points, shorten_names
from eltlab.common.errors import UserError

VALUES = [10.0, 12.0, 17.0]


def test_a_point_is_the_mean_over_seeds_with_its_t_interval() -> None:
    rows = [row("a", 4, value, seed=seed) for seed, value in enumerate(VALUES)]
    [line] = points(table(rows)).itertuples()
    low, high = stats.t.interval(0.95, 2, loc=13.0, scale=stats.sem(VALUES))
    assert line.heldout_loss == pytest.approx(13.0) and line.seeds == 3
    assert (line.heldout_loss - line.plus_minus, line.heldout_loss + line.plus_minus) == pytest.approx(
        (low, high)
    )


def test_one_seed_has_no_interval_and_says_so() -> None:
    rows = table([row("a", 4, 10.0), row("a", 2, 12.0)])
    assert points(rows)["plus_minus"].isna().all()
    assert "n = 1 seed, no interval" in caption(rows)
    lines = headline.headline(rows)
    assert "10.00 (no interval)" in headline.headline_rows(rows, lines, "heldout_loss")[1]


def test_sampling_seeds_of_one_training_seed_are_averaged_first() -> None:
    rows = [row("a", 4, 10.0), row("a", 4, 20.0, sample_seed=9), row("a", 4, 31.0, seed=1)]
    [line] = points(table(rows)).itertuples()
    assert line.heldout_loss == pytest.approx((15 + 31) / 2) and line.seeds == 2


def test_kinds_and_depths() -> None:
    rows = table([
        *arm("elastic", {2: 5.0, 4: 4.0}),
        *vanilla("vanilla", {4: 4.0}),
        *unique("twin", 8, 3.0),
        *arm("sandwich", {1: 1.0}, layers=1, depth=8),  # four layers before and after the loop of one
    ])  # fmt: skip
    assert list(arm_kinds(rows)) == [
        "elastic, ILSD",
        "elastic, ILSD",
        "vanilla loop",
        "unique layers",
        "elastic, ILSD",
    ]
    assert list(points(rows)["depth"]) == [4, 8, 8, 8, 5]


def test_the_standard_error_is_shown_for_one_seed_and_never_next_to_an_interval() -> None:
    more = {"heldout_loss_se": 0.25}
    [line] = points(table([row("a", 4, 10.0, **more)])).itertuples()
    assert np.isnan(line.plus_minus) and line.standard_error == 0.25
    [line] = points(table([row("a", 4, 10.0, **more), row("a", 4, 12.0, seed=1, **more)])).itertuples()
    assert line.plus_minus > 0 and np.isnan(line.standard_error)


def test_the_caption_says_what_was_measured() -> None:
    loss = caption(table([row("a", 4, 10.0)]))
    assert "diffusion; heldout_loss; n = 1 seed" in loss
    lengths = [row(name, 4, 10.0, ema_length=length) for name, length in (("a", 0.05), ("b", 0.1))]
    assert "; heldout_loss, a at ema length 0.05, b at ema length 0.1; n" in caption(table(lengths))
    sampling = caption_of_sampling(table([row("a", 4, 10.0)]), None, "means")
    assert sampling.endswith("protocol aaaa; sampled with 8 steps, guidance 1")
    distance = caption(table([row("a", 4, None, fid=9.0, split="test")]))
    assert "fid of 500 samples against the test split, 8 steps, guidance 1" in distance
    assert "fid of 500 samples, 8 steps" in caption(table([row("a", 4, None, fid=9.0)]))  # an old row


def test_schedules_and_halting_are_arms_of_their_own() -> None:
    rows = table([
        row("a", 4, 5.0),
        row("a", 2.5, 6.0, loop_schedule="4to1"),
        row("a", 3.2, 5.5, loop_schedule="4, halting 0.1"),
        row("a", 2.2, 5.9, loop_schedule="4, halting 0.2"),
    ])  # fmt: skip
    found = points(rows)
    assert list(found["arm"]) == ["a", "a 4to1", "a halting", "a halting"]
    assert list(found["loops"]) == [4, 2.5, 3.2, 2.2]


def test_an_arm_has_one_name_in_points_pictures_and_diagnostics(tmp_path: Path) -> None:
    """Even if a schedule changes the common start of the names."""
    tile = tmp_path / "samples" / "aaaa" / "loops_004.png"
    tile.parent.mkdir(parents=True)
    tile.touch()
    more = {"folder": str(tmp_path)}
    rows = table([
        row("study/digits-ilsd", 4, 5.0, **more),
        row("study/digits-ilsd", 2.5, 6.0, loop_schedule="4to1", **more),
    ])  # fmt: skip
    assert list(points(rows)["arm"]) == ["ilsd", "ilsd 4to1"]
    assert list(samples.find_tiles(rows)) == list(dynamics.select_runs(rows)["arm"]) == ["ilsd"]
    assert set(ablation.select_runs(rows, None, None, None)[0]["arm"]) == {"ilsd"}


def test_names_lose_their_common_words() -> None:
    rows = table([*arm("study/loops2-ilsd", {4: 1.0}), *arm("study/loops4-ilsd", {4: 1.0})])
    assert list(seed_points(rows)["arm"]) == ["loops2-ilsd", "loops4-ilsd"]


FUNCTIONS = {
    "points": points,
    "headline": headline.headline,
    "caption": caption,
    "pareto.fronts": pareto.fronts,
    "pareto.draw": pareto.draw,
    "anytime.draw": anytime.draw,
    "anytime.elasticity_tax": anytime.elasticity_tax,
    "ablation.paired_differences": lambda rows: ablation.paired_differences(rows, baseline="a"),
    "ablation.importance": ablation.importance,
    "ablation.draw": lambda rows: ablation.draw(rows, baseline="a"),
    "scaling.power_laws": scaling.power_laws,
    "scaling.loop_worths": scaling.loop_worths,
    "scaling.draw": scaling.draw,
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


@each_function
def test_rows_of_two_protocols_are_refused_naming_both(name: str) -> None:
    with pytest.raises(UserError, match="protocols aaaa and bbbb cannot be compared: samples 500"):
        FUNCTIONS[name](TWO_PROTOCOLS)


@each_function
def test_an_empty_table_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no evaluations among 0 rows"):
        FUNCTIONS[name](TWO_PROTOCOLS.iloc[:0])


@each_function
def test_rows_without_a_distance_are_refused(name: str) -> None:
    rows = TWO_PROTOCOLS[TWO_PROTOCOLS["name"] == "a"].assign(heldout_loss=np.nan)
    with pytest.raises(
        UserError, match=r"none of heldout_loss, fid, fvd, fd_classifier, .*: evaluate the runs"
    ):
        FUNCTIONS[name](rows)


def test_names_are_not_shortened_inside_a_number() -> None:
    assert shorten_names(["s/lr1e-05", "s/lr1e-04"]) == ["lr1e-05", "lr1e-04"]
    assert shorten_names(["s/loops2-ilsd", "s/loops2-final"]) == ["ilsd", "final"]
    assert shorten_names(["a"]) == ["a"]
