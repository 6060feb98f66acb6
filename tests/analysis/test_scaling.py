"""Fits recover known exponents."""

from pathlib import Path

import numpy as np
import pytest
from support.analysis_commands import run
from support.made_up_rows import arm, row, table, unique, vanilla

from eltlab.analysis import scaling
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows

G = np.geomspace(1e6, 1e9, 12)


@pytest.mark.parametrize("a, b, c", [(1922.5, -0.95, 1.48), (300.0, -0.3, 0.0), (5.0, 0.4, 2.0)])
def test_a_power_law_is_recovered(a: float, b: float, c: float) -> None:
    """The first law is the paper's, for FID over 10⁹ MACs."""
    fit = scaling.fit_power_law(G, a * (G / 1e9) ** b + c)
    height, exponent, floor, centre = fit.values
    assert exponent == pytest.approx(b, rel=1e-3)
    assert height * (1e9 / centre) ** b == pytest.approx(a, rel=1e-2)
    assert floor == pytest.approx(c, rel=2e-2, abs=0.02)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("floor", "count"),
    [
        (0.0, 6),
        (3.0, 12),
        pytest.param(0.0, 12, marks=pytest.mark.slow),
        pytest.param(3.0, 6, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_as_often_as_they_say(floor: float, count: int) -> None:
    """For about 95 of 100 noisy laws the intervals contain b and c, even if c is at its bound."""
    dice = np.random.default_rng(0)
    x = np.geomspace(1e6, 1e9, count)
    clean = 50 * (x / 1e7) ** -0.6 + floor
    fits = [scaling.fit_power_law(x, clean * np.exp(dice.normal(0, 0.05, count))) for _ in range(100)]
    for index, truth in ((1, -0.6), (2, floor)):
        covered = np.mean([fit.low[index] <= truth <= fit.high[index] for fit in fits])
        assert covered >= 0.9


def test_the_interval_of_c_has_an_upper_end() -> None:
    x = np.geomspace(1e6, 1e9, 8)
    fit = scaling.fit_power_law(x, 50 * (x / 1e7) ** -0.6 * np.tile([1.01, 0.99], 4))
    assert fit.low[2] == 0 and fit.high[2] < 50 * 100**-0.6


@pytest.mark.parametrize("worth", [0.0, 0.46, 1.0])
def test_the_worth_of_a_loop_is_recovered(worth: float) -> None:
    n = np.array([1, 2, 4, 8, 16, 1, 1, 2, 2, 4, 1])
    r = np.array([1, 1, 1, 1, 1, 2, 4, 2, 4, 2, 8])
    fit = scaling.fit_loop_worth(n, r, 40 * (n * r**worth) ** -0.7 + 3)
    assert fit.names == ("a", "b", "c", "φ") and fit.points == 11
    assert fit.values == pytest.approx([40, -0.7, 3, worth], rel=1e-2, abs=1e-2)
    assert fit.low[3] - 1e-6 <= worth <= fit.high[3] + 1e-6


def study() -> list[dict]:
    rows = []
    for seed in (0, 1):
        noise = 1 + 0.01 * seed
        for n in (1, 2, 4, 8):
            rows += unique(f"u{n}", n, noise * 30 * n**-0.5, seed=seed)
        for n, r in ((1, 2), (2, 2), (2, 4), (4, 2), (4, 4)):
            value = noise * 30 * (n * r**0.5) ** -0.5
            rows += vanilla(f"v{n}x{r}", {r: value, 1: 999.0}, layers=n, trained=r, seed=seed)
    return rows


def test_fits_of_a_table() -> None:
    found = scaling.loop_worths(table(study()))
    assert set(found) == {"vanilla loop"}
    assert found["vanilla loop"].values[3] == pytest.approx(0.5, abs=0.05)
    laws = scaling.power_laws(table(study()))
    assert laws["unique layers"].values[1] == pytest.approx(-0.5, abs=0.05)
    # Vanilla loops are taken at their trained loop count, so no 999 is among the points.
    assert laws["vanilla loop"].points == 10


def test_a_biased_metric_has_no_fit_and_says_why_in_one_line(tmp_path: Path) -> None:
    rows = [each | {"fid": each["heldout_loss"]} for each in study()]
    reason = "fid of 500 samples is biased by the number of samples"
    for fits in (scaling.power_laws(table(rows), "fid"), scaling.loop_worths(table(rows), "fid")):
        assert fits and all(str(fit).startswith(reason) for fit in fits.values())
    figure = scaling.draw(table(rows), "fid")
    assert "No fits: fid of 500" in figure._supxlabel.get_text().replace("\n", " ")
    append_rows(tmp_path / "rows.jsonl", rows)
    done = run("scaling", "rows.jsonl", "metric=fid", cwd=tmp_path)
    first, figure_line = done.stdout.splitlines()
    assert first.startswith(f"no fits: {reason}") and figure_line == "figure: scaling.png", done.stderr


def test_too_few_points_give_a_reason_instead_of_a_fit() -> None:
    with pytest.raises(UserError, match="4 points at 2 different places; fitting a, b and c"):
        scaling.fit_power_law([1e6, 1e6, 1e7, 1e7], [4.0, 4.1, 3.0, 3.1])
    with pytest.raises(UserError, match="requires looped arms, and unique-layer arms of two depths"):
        scaling.fit_loop_worth([1, 2, 4], [1, 1, 1], [3.0, 2.0, 1.0])
    laws = scaling.power_laws(table([*unique("u1", 1, 5.0), *unique("u8", 8, 2.0)]))
    assert "2 points at 2 different places" in laws["unique layers"]
    with pytest.raises(UserError, match="above 0"):
        scaling.fit_power_law([1.0, 2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0])


def test_constant_quality_determines_no_exponent() -> None:
    with pytest.raises(UserError, match="the points do not determine b: its interval is -"):
        scaling.fit_power_law(np.repeat(G[:4], 3), [31, 20, 41, 23, 41, 29, 28, 19, 39, 29, 27, 35])


def test_arms_that_are_not_drawn_are_named() -> None:
    rows = table(
        [*study(), row("halfway", 2, 5.0, supervision="final"), row("v4", 2.5, 5.0, loop_schedule="4to1")]
    )
    text = scaling.draw(rows)._supxlabel.get_text().replace("\n", " ")
    assert "Not at the loop counts it was trained for: halfway, v4 4to1" in text


def test_widths_are_not_mixed() -> None:
    rows = table([*study(), *unique("wide", 8, 1.0, width=128)])
    with pytest.raises(UserError, match="rows of widths 64, 128"):
        scaling.loop_worths(rows)


def test_the_figure_has_a_line_for_each_fit() -> None:
    rows = table([*study(), *arm("x", {4: 3.0}, supervision="deep")])
    names = [text.get_text() for text in scaling.draw(rows).legends[0].get_texts()]
    assert any(name.startswith("unique layers: b = -0.5") for name in names)
    assert "elastic, deep: no fit" in names


def test_an_arm_not_above_0_by_its_error_leaves_its_kind_without_a_fit() -> None:
    rows = [each | {"kd_classifier": each["heldout_loss"], "kd_classifier_se": 0.1} for each in study()]
    changed = table([each | {"kd_classifier": -1.0} if each["name"] == "v2x4" else each for each in rows])
    laws, worths = (fit(changed, "kd_classifier") for fit in (scaling.power_laws, scaling.loop_worths))
    reason = "kd_classifier of v2x4 is not above 0 by its error"
    assert laws["vanilla loop"] == worths["vanilla loop"] == reason
    assert laws["unique layers"].values[1] == pytest.approx(-0.5, abs=0.05)
    [axes] = scaling.draw(changed, "kd_classifier").axes
    assert axes.get_yscale() == "linear"
