"""What templates get from a study: values, comparisons that refuse biased metrics, tables and figures."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats
from support import diagnostic_files
from support.made_up_rows import arm, row, table, unique, vanilla

from eltlab.analysis.measured_study import MeasuredStudy, add_final_losses
from eltlab.common.errors import UserError

ELASTIC, TWIN = [0.24, 0.22, 0.26], [0.20, 0.21, 0.22]
FIGURES: dict[str, Callable[[], Figure]] = {}


def add_figure(file: str, alt: str, draw: Callable[[], Figure]) -> str:
    FIGURES[file] = draw
    return f"![{alt}]({file})"


def study(rows: list[dict[str, Any]] | None = None) -> MeasuredStudy:
    found = rows or [
        each
        for seed, (own, other) in enumerate(zip(ELASTIC, TWIN, strict=True))
        for each in [
            *arm(
                "s/elastic",
                {2: own + 0.1, 4: own},
                seed=seed,
                fd_classifier=30.0,
                fd_classifier_inf=9.0 + own,
            ),
            *unique("s/twin", 8, other, seed=seed, fd_classifier=20.0, fd_classifier_inf=8.0),
        ]
    ]
    return MeasuredStudy("made_up", table(found), {"elastic": "the elastic model"}, add_figure)


def test_a_point_is_an_arm_at_its_trained_loops_or_at_those_named() -> None:
    found = study()
    assert found.value("elastic") == found.value("elastic@4") == pytest.approx(np.mean(ELASTIC))
    assert found.value("elastic@2") == pytest.approx(np.mean(ELASTIC) + 0.1)
    assert list(found.seeds("twin")) == TWIN
    assert found.value("twin", "params_total") == 8000
    for point, said in [
        ("elastik", "did you mean elastic"),
        ("elastic@3", "loop counts: 2, 4"),
        ("x", "arms:"),
    ]:
        with pytest.raises(UserError, match=said):
            found.value(point)
    with pytest.raises(UserError, match="elastic has no kid"):
        found.value("elastic", "kid")
    assert found.title == "none, diffusion"


def test_the_mean_over_exits_is_of_those_up_to_the_trained_one() -> None:
    assert study().mean_over_exits("elastic") == pytest.approx(np.mean(ELASTIC) + 0.05)
    rows = [*arm("s/e", {2: 0.4, 4: 0.2, 6: 9.0}), *arm("s/e", {2: 0.6, 4: 0.4, 6: 9.0}, seed=1)]
    assert str(study(rows).mean_over_exits("s/e")).startswith("0.4000 ± ")


def test_a_schedule_is_the_only_point_of_its_arm() -> None:
    rows = [row("e", 2.5, 0.3, loop_schedule="1to4"), row("e", 4, 0.2), row("f", 4, 0.1)]
    found = study(rows)
    assert found.value("e 1to4") == 0.3 and found.value("e") == 0.2
    assert found.label("e 1to4@1to4") == "e 1to4 at 1to4"


def test_a_ratio_is_paired_over_shared_seeds() -> None:
    logs = np.log(ELASTIC) - np.log(TWIN)
    low, high = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    found = study().ratio("elastic", "twin")
    assert (found, found.low, found.high) == tuple(map(pytest.approx, (np.exp(logs.mean()), low, high)))
    assert str(found) == f"{np.exp(logs.mean()):.3f} ({low:.3f} to {high:.3f})" and found.seeds == 3


def test_biased_metrics_have_no_ratio_and_only_those_with_a_common_bias_a_difference() -> None:
    found = study()
    with pytest.raises(UserError, match=r"elastic ÷ twin: fd_classifier of 500 samples is biased"):
        found.ratio("elastic", "twin", "fd_classifier")
    for compare in (found.difference, found.compare):
        with pytest.raises(UserError, match="fd_classifier of 500 samples is biased"):
            compare("elastic", "twin", "fd_classifier")
    assert found.difference("elastic", "twin", "fd_classifier_inf") == pytest.approx(1 + np.mean(ELASTIC))
    assert found.compare("elastic", "twin", "fd_classifier_inf").startswith(
        "the elastic model is behind twin"
    )


def test_what_a_sentence_says_follows_the_rows() -> None:
    said = study().compare("elastic@2", "elastic")
    assert said.startswith("the elastic model at 2 loops is behind the elastic model: the ratio of their ")
    rows = [each for s in (0, 1) for each in [row("e", 4, 0.2 + s, seed=s), row("f", 4, 1.2 - s, seed=s)]]
    assert study(rows).compare("e", "f").startswith("the rows cannot tell e from f")
    strangers = [row("e", 4, 0.2), row("f", 4, 0.1, seed=1)]
    with pytest.raises(UserError, match="no seed is shared"):
        study(strangers).ratio("e", "f")


def test_a_kernel_distance_of_one_seed_needs_its_standard_error() -> None:
    def rows(**more: float) -> list[dict[str, Any]]:
        return [row("e", 4, None, kd_classifier=2.0, **more), row("f", 4, None, kd_classifier=1.0, **more)]

    assert str(study(rows(kd_classifier_se=0.1)).ratio("e", "f")) == "2.000 (no interval: one seed)"
    with pytest.raises(UserError, match="has one seed and no standard error"):
        study(rows()).ratio("e", "f")


def test_the_table_the_headline_and_the_figure_are_markdown() -> None:
    found = study()
    assert found.table("twin").splitlines()[2].startswith("| twin | 8 x 1 | 1 | 8M | 0.2100 ± ")
    assert "| elastic | 2 x 4 |" in found.grid() and "at 2 | at 4 |" in found.grid()
    assert "÷ twin" in found.headline()
    with pytest.raises(UserError, match="twim: did you mean twin"):
        found.table("twim")
    assert (
        found.figure("anytime", alt="A", metric="fd_classifier") == "![A](made_up-anytime-fd_classifier.png)"
    )
    assert isinstance(FIGURES["made_up-anytime-fd_classifier.png"](), Figure)
    with pytest.raises(UserError, match="figure anytim: did you mean anytime"):
        found.figure("anytim")


def test_the_tax_is_stated_if_there_is_one() -> None:
    with pytest.raises(UserError, match="has no elasticity tax"):
        _ = study().tax
    rows = [*arm("e", {1: 0.4, 2: 0.3}, trained=2), *vanilla("v", {2: 0.2}, trained=2), *unique("u", 2, 0.25)]
    assert study(rows).tax.startswith("e +")


def test_an_unknown_arm_of_a_ratio_is_named() -> None:
    with pytest.raises(UserError, match="twni"):
        study().ratio("elastic", "twni", "heldout_loss")


def test_the_loss_of_a_candidate_is_that_of_the_tuning_runs() -> None:
    on = "held-out loss, tuning seed 9, 0.25 of the budget; optim.lr=0.001: 0.3, optim.lr=0.002: diverged"
    tuned = study([row("a", 1, 2.0) | {"tuned": '{"optim.lr": 0.001}', "tuned_on": on}])
    assert tuned.tuning_loss("a", "optim.lr=0.001") == 0.3
    assert tuned.tuning_loss("a", "optim.lr=0.002") == math.inf
    with pytest.raises(UserError, match="was no candidate"):
        tuned.tuning_loss("a", "optim.lr=0.004")


def test_old_rows_get_the_last_held_out_loss_of_each_exit(tmp_path: Path) -> None:
    rows = [each for seed in (0, 1) for each in diagnostic_files.run(tmp_path / f"{seed}", seed, 2.0 + seed)]
    found = add_final_losses(table(rows).drop(columns="heldout_loss").assign(fid=1.0))
    assert list(found["heldout_loss"]) == [3.0, 2.0, 4.0, 2.5]
    updates = MeasuredStudy("made_up", found, {}, add_figure).updates
    assert updates["elastic", 2, 2, 1] == pytest.approx(1.25)
