"""Quality against inference compute: the curves, and the elasticity tax against known areas."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from scipy import stats
from support.analysis_commands import run
from support.made_up_rows import arm, row, table, unique, vanilla

from eltlab.analysis import anytime
from eltlab.analysis.points import points
from eltlab.runs.row_files import append_rows

APART = {1: 40.0, 2: 20.0, 3: 15.0, 4: 10.0}  # a model of two layers trained for each count


def apart(seed: int = 0) -> list[dict]:
    own = [unique("u2", 2, APART[1], seed=seed)]
    own += [vanilla(f"vanilla{n}", {n: APART[n], 1: 500.0}, trained=n, seed=seed) for n in (2, 3, 4)]
    return [row for rows in own for row in rows]


def elastic(factor: float, seed: int = 0) -> list[dict]:
    return arm("elastic", {n: factor * value for n, value in APART.items()}, seed=seed)


def end_names(figure: Figure) -> list[str]:
    """The names in the column next to the panel."""
    [axes] = figure.axes
    names = [each for each in axes.get_children() if isinstance(each, Legend)]
    return [text.get_text() for name in names for text in name.get_texts()]


def tax(*rows: dict) -> float:
    [line] = anytime.elasticity_tax(table(rows)).itertuples()
    return line.tax


def test_a_model_that_is_a_quarter_worse_everywhere_has_that_tax() -> None:
    assert tax(*apart(), *elastic(1.25)) == pytest.approx(0.25)
    assert tax(*apart(), *elastic(0.5)) == pytest.approx(-0.5)


def test_the_tax_is_the_area_between_the_curves_in_logarithms() -> None:
    """Twice the distance at one loop and equal at two: a triangle, then nothing, of equal widths."""
    rows = [
        *unique("u2", 2, 10.0),
        *vanilla("v2", {2: 10.0}, trained=2),
        *vanilla("v4", {4: 10.0}, trained=4),
        *arm("elastic", {1: 20.0, 2: 10.0, 4: 10.0}),
    ]
    assert tax(*rows) == pytest.approx(np.exp(np.log(2) / 2 / 2) - 1)


def test_both_curves_are_the_best_within_their_budget() -> None:
    """A deeper model that is worse is skipped, because a budget need not be used up."""
    rows = [*unique("u2", 2, 10.0), *vanilla("v4", {4: 90.0}), *arm("e", {1: 20.0, 4: 70.0})]
    assert tax(*rows) == pytest.approx(1.0)


def test_loops_beyond_training_and_schedules_are_not_in_the_tax() -> None:
    beyond = [row("elastic", 8, 1e-9), row("elastic", 2.5, 1e-9, loop_schedule="4to1")]
    assert tax(*apart(), *elastic(1.25), *beyond) == pytest.approx(0.25)


def test_over_seeds_the_tax_has_a_t_interval() -> None:
    factors = (1.1, 1.2, 1.5)
    rows = [r for seed, factor in enumerate(factors) for r in (*apart(seed), *elastic(factor, seed))]
    [line] = anytime.elasticity_tax(table(rows)).itertuples()
    # The jackknife of the log of the mean factor, because each curve is a multiple of the same one.
    whole = np.log(np.mean(factors))
    without = [np.log(np.mean([f for f in factors if f != left])) for left in factors]
    pseudo = 3 * whole - 2 * np.array(without)
    low, high = stats.t.interval(0.95, 2, loc=pseudo.mean(), scale=stats.sem(pseudo))
    assert (line.tax, line.low, line.high, line.seeds) == pytest.approx(
        (np.expm1(pseudo.mean()), np.expm1(low), np.expm1(high), 3)
    )
    assert "3 seeds" in anytime.describe_tax(line)


def test_one_seed_has_no_interval_and_says_so() -> None:
    [line] = anytime.elasticity_tax(table([*apart(), *elastic(1.25)])).itertuples()
    assert np.isnan(line.low) and anytime.describe_tax(line) == (
        "elastic +25% over 1 to 4 of 4 loops, one seed: no interval"
    )


@pytest.mark.integration
def test_noise_between_models_adds_no_tax() -> None:
    """All models are equally good with 10 % noise; without the jackknife the mean tax would be 4 %."""
    dice = np.random.default_rng(0)
    found = []
    for _ in range(60):
        rows = []
        for seed in range(3):
            noise = np.exp(dice.normal(0, 0.1, 8))
            rows += unique("u2", 2, noise[0], seed=seed)
            for n in (2, 3, 4):
                rows += vanilla(f"v{n}", {n: noise[n - 1]}, trained=n, seed=seed)
            rows += arm("elastic", {n: noise[4] for n in (1, 2, 3, 4)}, seed=seed)
        found.append(tax(*rows))
    assert abs(np.mean(found)) < 0.02


def test_the_tax_names_its_loop_counts() -> None:
    rows = [*unique("u2", 2, 10.0), *vanilla("v2", {2: 5.0}, trained=2)]
    rows += arm("elastic", {1: 10.0, 2: 5.0, 4: 99.0, 8: 99.0}, trained=8)
    [line] = anytime.elasticity_tax(table(rows)).itertuples()
    assert (line.loops_from, line.loops_to, line.loops_train) == (1, 2, 8)
    assert "over 1 to 2 of 8 loops" in anytime.describe_tax(line)


def test_layers_around_the_loop_make_a_different_block() -> None:
    sandwich = [{**each, "depth": 8} for each in arm("e", {1: 9.0, 2: 5.0}, trained=2)]
    assert anytime.elasticity_tax(table([*apart(), *sandwich])).empty


def test_the_floor_is_that_of_the_drawn_rows() -> None:
    more = {"heldout_loss": None, "fd_classifier": 9.0}
    rows = table([
        row("a", 4, 0, **more, fd_ideal=1.0),
        row("b", 4, 0, **more, fd_ideal=9.0, protocol="bbbb"),
    ])  # fmt: skip
    assert "↓ ideal samples of the same number: 1" in end_names(anytime.draw(rows, protocol="aaaa"))


@pytest.mark.parametrize("metric", ["fid", "fvd", "fd_classifier"])
def test_the_floor_is_the_mean_of_what_ideal_samples_of_each_row_would_get(metric: str) -> None:
    own = [
        row(name, 4, None, **{metric: value}, fd_ideal=ideal)
        for name, value, ideal in (("a", 9.0, 4.0), ("b", 3.0, 5.0))
    ]
    figure = anytime.draw(table(own))
    [axes] = figure.axes
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [4.5]
    assert "ideal samples of the same number" in end_names(figure)


@pytest.mark.parametrize(("ideal", "name"), [
    (3.5, "ideal samples of the same number"), (0.02, "↓ ideal samples of the same number: 0.02"),
    (2e4, "↑ ideal samples of the same number: 20k"),
])  # fmt: skip
@pytest.mark.parametrize("least", [3.0, -1.0])
def test_the_floor_does_not_change_the_axis(ideal: float, name: str, least: float) -> None:
    """Without this, arms of thousands would be flattened by a floor of 1."""
    own = [row(arm, 4, None, fd_classifier=value) for arm, value in (("a", 5.0), ("b", 4.0), ("c", least))]
    if least < 0:  # on a linear axis
        ideal, name = (ideal, name) if ideal > 1 else (-9.0, "↓ ideal samples of the same number: -9")
    plain = anytime.draw(table(own))
    figure = anytime.draw(table([each | {"fd_ideal": ideal} for each in own]))
    [without], [axes] = plain.axes, figure.axes
    assert axes.get_ylim() == without.get_ylim() and axes.get_yscale() == without.get_yscale()
    assert set(end_names(figure)) - set(end_names(plain)) == {name}


def test_arms_that_are_not_drawn_are_named() -> None:
    rows = [*apart(), *elastic(1.0), row("unmeasured", 4, None)]
    figure = anytime.draw(table(rows))
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert "Drawn only at the loop count it was trained for: vanilla2, vanilla3" in text
    assert "Without heldout_loss: unmeasured" in text
    many = [each for n in range(33) for each in arm(f"a{n}", {1: 9.0, 4: 5.0 + n})]
    figure = anytime.draw(table(many))
    assert len(end_names(figure)) == 30
    assert "Without a name: a30, a31, a32" in figure._supxlabel.get_text().replace("\n", " ")


@pytest.mark.parametrize("metric", ["heldout_loss", "kd_classifier", "fd_classifier_inf"])
def test_an_unbiased_metric_has_no_floor(metric: str) -> None:
    [axes] = anytime.draw(table([row("a", 4, None, **{metric: 9.0}, fd_ideal=2.0)])).axes
    assert [line for line in axes.lines if line.get_linestyle() == ":"] == []


def test_the_distance_of_two_halves_is_no_floor_of_samples() -> None:
    [axes] = anytime.draw(table([row("a", 4, None, fd_classifier=9.0, fd_halves=2.0)])).axes
    assert [line for line in axes.lines if line.get_linestyle() == ":"] == []


def test_a_biased_distance_has_no_tax_and_says_why(tmp_path: Path) -> None:
    rows = [*apart(), *elastic(1.25)]
    rows = [each | {"fd_classifier": each["heldout_loss"]} for each in rows]
    assert anytime.elasticity_tax(table(rows), "fd_classifier").empty
    assert len(anytime.elasticity_tax(table(rows))) == 1
    append_rows(tmp_path / "rows.jsonl", rows)
    done = run("anytime", "rows.jsonl", "metric=fd_classifier", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == (
        "elasticity tax: none: fd_classifier of 500 samples is biased by the number of samples, so it has no "
        "ratio, tax or power law; choose metric=heldout_loss\n"
    )


def test_without_models_trained_apart_there_is_no_tax() -> None:
    rows = table([*elastic(1.0), *vanilla("vanilla", {2: 9.0, 4: 3.0}), *unique("twin", 8, 2.0)])
    assert anytime.elasticity_tax(rows).empty
    # Models of a different width do not count either.
    wide = [{**each, "width": 128} for each in apart()]
    assert anytime.elasticity_tax(table([*elastic(1.0), *wide])).empty


def test_the_curves_of_the_figure() -> None:
    rows = table([*apart(), *elastic(1.25), *unique("u8", 8, 5.0)])
    curves = {each.name: each.points for each in anytime.find_curves(points(rows))}
    trained = curves.pop(f"2 layers {anytime.APART}")
    assert list(trained["heldout_loss"]) == [40, 20, 15, 10] and list(trained["loops_train"]) == [1, 2, 3, 4]
    assert list(curves["unique layers"]["unique_layers"]) == [2, 8]
    # Only the deepest vanilla loop has a curve over its loop counts.
    assert set(curves) == {"unique layers", "elastic", "vanilla4"}


def test_unique_layers_of_one_depth_are_no_curve() -> None:
    rows = table([*unique("twin-lr1", 8, 5.0), *unique("twin-lr2", 8, 6.0), *elastic(1.0)])
    assert {each.name for each in anytime.find_curves(points(rows))} == {"twin-lr1", "twin-lr2", "elastic"}


def test_models_trained_apart_are_joined_by_a_dotted_line() -> None:
    rows = [*apart(), *unique("wide", 8, 5.0, width=128)]
    for found in (apart(), rows):
        [axes] = anytime.draw(table(found)).axes
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [list(line.get_ydata()) for line in dotted] == [[40, 20, 15, 10]]


def test_extrapolation_is_dashed_and_hollow() -> None:
    rows = table(arm("elastic", {1: 40.0, 2: 20.0, 4: 10.0, 6: 11.0, 8: 15.0}))
    [axes] = anytime.draw(rows).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[10.0, 11.0, 15.0]]
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_ydata()) for line in hollow] == [[11.0, 15.0]]


def test_the_figure_has_its_intervals_and_its_floor() -> None:
    more = {"heldout_loss": None, "fd_ideal": 4.0}
    rows = table([
        row("e", 4, 0, fd_classifier=9.0, **more),
        row("e", 4, 0, fd_classifier=11.0, seed=1, **more),
    ])  # fmt: skip
    figure = anytime.draw(rows)
    [axes] = figure.axes
    [bars] = axes.collections
    [[low, high]] = [segment[:, 1] for segment in bars.get_segments()]
    assert high - 10 == pytest.approx(stats.t.ppf(0.975, 1)) and low == pytest.approx(1e-2)
    assert [list(line.get_ydata()) for line in axes.lines if line.get_linestyle() == ":"] == [[4, 4]]
    assert "n = 2 seeds, 95 % t intervals" in figure._supxlabel.get_text().replace("\n", " ")


def test_only_points_that_are_drawn_have_an_interval() -> None:
    """A vanilla loop trained for two loops is drawn at two loops: its exit at one has no mark."""
    rows = table([line for seed in (0, 1) for line in [*apart(seed), *elastic(1.0 + seed, seed)]])
    [axes] = anytime.draw(rows).axes
    [bars] = axes.collections
    elastic_exits, vanilla4_exits, alone = 4, 2, 3  # unique, vanilla2 and vanilla3 at their own count
    assert len(bars.get_segments()) == elastic_exits + vanilla4_exits + alone


def test_the_figure_and_its_table_of_known_rows(tmp_path: Path) -> None:
    rows = [row("elt", n, 10.0 / n + seed, seed=seed) for n in (1, 2, 4) for seed in (0, 1, 2)]
    append_rows(tmp_path / "elt.jsonl", rows)
    append_rows(tmp_path / "twin.jsonl", [row("twin", 1, 2.0, layers=8, trained=1, seed=n) for n in range(3)])
    done = run("anytime", "out=figure.png", "elt.jsonl", "twin.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Mean 11 over seeds 10, 11, 12; the 95 % t interval is 4.303·1/√3 = 2.48.
    assert lines[1].split()[:2] == ["elt", "1"]
    assert "11.00" in lines[1] and "2.48" in lines[1]
    assert any(line.startswith("twin ") for line in lines)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_sampling_seeds_are_not_independent_runs(tmp_path: Path) -> None:
    rows = [row("elt", 1, 10.0 + seed, seed=seed, sample_seed=s) for seed in (0, 1) for s in (5, 6)]
    append_rows(tmp_path / "rows.jsonl", rows)
    done = run("anytime", "rows.jsonl", cwd=tmp_path)
    # Mean 10.5 of two seeds, not four: the t interval is 12.706·0.707/√2 = 6.35.
    assert done.returncode == 0 and "10.50" in done.stdout and "6.35" in done.stdout


def test_the_figure_refuses_mixed_protocols(tmp_path: Path) -> None:
    append_rows(
        tmp_path / "rows.jsonl", [row("elt", 1, 5.0, protocol="aaa"), row("elt", 2, 5.0, protocol="bbb")]
    )
    done = run("anytime", "out=figure.png", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "cannot be compared" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "figure.png").exists()
    chosen = run("anytime", "out=chosen.svg", "protocol=aaa", "rows.jsonl", cwd=tmp_path)
    assert chosen.returncode == 0 and (tmp_path / "chosen.svg").exists(), chosen.stderr


def as_kernel_distance(rows: list[dict], **values: float) -> list[dict]:
    """The rows with their losses as kernel distances of known error; values: those of arms by name."""
    return [
        each | {"kd_classifier": values.get(each["name"], each["heldout_loss"]), "kd_classifier_se": 0.1}
        for each in rows
    ]


@pytest.mark.parametrize("name", ["elastic", "vanilla3"])
@pytest.mark.parametrize("value", [-0.2, 0.1])
def test_an_arm_not_above_0_by_its_error_has_no_tax_but_a_figure(name: str, value: float) -> None:
    rows = table(as_kernel_distance([*apart(), *elastic(1.25)], **{name: value}))
    [line] = anytime.elasticity_tax(rows, "kd_classifier").itertuples()
    reason = f"kd_classifier of {name} is not above 0 by its error"
    assert np.isnan(line.tax) and line.no_tax == reason
    assert anytime.describe_tax(line) == f"elastic none ({reason})"
    [axes] = anytime.draw(rows, "kd_classifier").axes
    assert axes.get_yscale() == ("linear" if value < 0 else "log")
    assert axes.get_ylim()[0] < value
    assert anytime.elasticity_tax(table(as_kernel_distance([*apart(), *elastic(1.25)])), "kd_classifier")[
        "tax"
    ].item() == pytest.approx(0.25)
