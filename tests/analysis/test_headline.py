"""The headline table: ratios to the twin with intervals, and what it says about missing ones."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.analysis_commands import run
from support.made_up_rows import arm, row, table, unique

from eltlab.analysis import headline
from eltlab.common.errors import UserError


def cells(rows: list[dict[str, Any]], metric: str = "heldout_loss") -> dict[str, dict[str, str]]:
    """The cells of the table by arm and title."""
    rows = table(rows)
    titles, *lines = headline.headline_rows(rows, headline.headline(rows, metric), metric)
    return {line[0]: dict(zip(titles, line, strict=True)) for line in lines}


def test_small_distances_keep_their_digits() -> None:
    assert cells([row("a", 4, 0.0032, seed=s) for s in (0, 1)])["a"]["heldout_loss"] == "0.0032 ± 0.0000"


def test_there_is_one_line_per_arm_at_its_trained_loops() -> None:
    lines = headline.headline(table([*arm("elastic", {2: 30.0, 4: 20.0}), *unique("twin", 8, 16.0)]))
    lines = lines.set_index("arm")
    assert lines.loc["elastic", "twin"] == "twin" and lines.loc["elastic", "ratio"] == 1.25
    assert pd.isna(lines.loc["twin", "twin"]) and np.isnan(lines.loc["twin", "ratio"])
    assert len(lines) == 2


OWN, TWIN = [20.0, 24.0, 33.0], [10.0, 15.0, 20.0]


def test_the_ratio_is_paired_over_shared_seeds_and_has_a_t_interval() -> None:
    rows = [row("e", 4, value, seed=n) for n, value in enumerate(OWN)]
    rows += [each for n, value in enumerate(TWIN) for each in unique("twin", 8, value, seed=n)]
    rows += [row("e", 4, 1e9, seed=7), *unique("twin", 8, 1e-9, seed=8)]
    logs = np.log(OWN) - np.log(TWIN)
    low, high = np.exp(stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs)))
    line = headline.headline(table(rows)).set_index("arm").loc["e"]
    assert (line["ratio"], line["ratio_low"], line["ratio_high"]) == pytest.approx(
        (np.exp(logs.mean()), low, high)
    )
    assert (
        cells(rows)["e"]["÷ twin"] == f"{np.exp(logs.mean()):.2f} ({low:.2f} to {high:.2f}; 3 shared seeds)"
    )


def test_one_seed_has_a_ratio_without_an_interval_and_strangers_have_none() -> None:
    rows = [*arm("e", {4: 20.0}), *arm("e", {4: 99.0}, seed=1), *unique("twin", 8, 10.0)]
    assert cells(rows)["e"]["÷ twin"] == "2.00 (no interval: one seed)"
    strangers = [*arm("e", {4: 20.0}), *unique("twin", 8, 10.0, seed=3)]
    assert headline.headline(table(strangers)).loc[0, "no_ratio"] == "no seed is shared with twin"


def test_a_biased_metric_has_no_column_of_ratios_and_the_note_says_why() -> None:
    rows = [*arm("e", {4: 3.0}, fd_classifier=20.0), *unique("twin", 8, 2.0, fd_classifier=10.0)]
    assert "÷ twin" not in cells(rows, "fd_classifier")["e"]
    assert cells(rows)["e"]["÷ twin"].startswith("1.50")
    lines = headline.headline(table(rows), "fd_classifier")
    assert lines["ratio"].isna().all() and lines.loc[0, "twin"] == "twin"
    assert "No ÷ twin of e: fd_classifier of 500 samples is biased by" in headline.headline_notes(lines)


def test_the_reason_for_a_missing_twin_is_printed() -> None:
    rows = [*arm("e", {4: 3.0}, **{"cfg.optim.lr": 1.0}), *unique("t", 8, 2.0, **{"cfg.optim.lr": 2.0})]
    notes = headline.headline_notes(headline.headline(table(rows)))
    assert notes.endswith("No ÷ twin of e: t differs in optim.lr")


def test_a_kernel_distance_near_0_has_no_ratio() -> None:
    known = {"kd_classifier": 2.0, "kd_classifier_se": 0.1}
    rows = [*arm("e", {4: None}, **known), *unique("t", 8, None, kd_classifier=-0.1)]
    line = headline.headline(table(rows)).iloc[0]
    assert np.isnan(line["ratio"]) and line["no_ratio"] == "kd_classifier of t is not above 0 by its error"
    noisy = arm("e", {4: None}, **known)
    noisy += unique("t", 8, None, kd_classifier=0.1, kd_classifier_se=0.1)
    assert np.isnan(headline.headline(table(noisy)).iloc[0]["ratio"])


def test_an_unbiased_distance_of_the_samples_is_shown_next_to_the_held_out_loss() -> None:
    more = {"kd_classifier": 4.0, "kd_classifier_se": 0.5, "heldout_loss_se": 0.001}
    line = cells([*arm("e", {2: 0.3, 4: 0.2}, **more), *unique("t", 8, 0.19)])["e"]
    assert line["heldout_loss"] == "0.2000 ± 0.0010 (se)" and line["kd_classifier"] == "4.00 ± 0.50 (se)"
    assert cells([*arm("e", {4: 0.2}, **more), *unique("t", 8, 0.19)])["t"]["kd_classifier"] == ""


def test_without_the_trained_loop_count_there_is_no_headline() -> None:
    with pytest.raises(UserError, match="no arm was measured at the loop count it was trained for"):
        headline.headline(table(arm("e", {2: 20.0})))


def test_old_rows_still_print_their_distance() -> None:
    done = run("headline", "anytime_diffusion")
    assert done.returncode == 0 and "40.29 ± 8.96" in done.stdout
    assert "÷ twin  " not in done.stdout and "fd_classifier of 1000 samples is biased" in done.stdout


def test_a_twin_whose_tuned_key_changes_the_loss_gives_no_ratio_of_losses() -> None:
    def tuned(weight: float) -> dict[str, Any]:
        text = f'{{"objective.weight": {weight}}}'
        return {"heldout_protocol": str(weight), "tuned": text, "cfg.objective.weight": weight}

    rows = table([*arm("e", {4: 3.0}, **tuned(1.0)), *unique("t", 8, 2.0, **tuned(2.0))])
    with pytest.raises(UserError, match=r"measure 2 different losses \(objective.weight\)"):
        headline.headline(rows)


def test_the_seeds_of_a_ratio_are_stated_if_the_arm_has_more_and_missing_ones_are_noted() -> None:
    rows = [each for seed in (0, 1, 2) for each in arm("e", {4: 20.0 + seed}, seed=seed)]
    rows += [each for seed in (0, 1) for each in unique("t", 8, 10.0 + seed, seed=seed)]
    assert cells(rows)["e"]["÷ twin"].endswith("; 2 shared seeds)")
    notes = headline.headline_notes(headline.headline(table(rows)))
    assert notes.endswith("Of the seeds that other arms have, t lacks 2")
    same = rows[:2] + rows[3:]
    assert "shared seeds)" not in cells(same)["e"]["÷ twin"]
    assert "lacks" not in headline.headline_notes(headline.headline(table(same)))


def test_the_caption_states_tuned_values_and_the_settings_of_the_distance_next_to_the_loss() -> None:
    def of(rate: float) -> dict[str, Any]:
        return {"kd_classifier": 4.0, "tuned": f'{{"optim.lr": {rate}}}', "tuned_on": "loss; lr=1: 2"}

    rows = table([*arm("e", {4: 0.2}, **of(0.002)), *unique("t", 8, 0.19, **of(0.004))])
    text = headline.headline_caption(rows, "heldout_loss")
    assert "; heldout_loss; tuned: e optim.lr=0.002, t optim.lr=0.004 (chosen on loss); n = 1" in text
    assert text.endswith("; kd_classifier of 500 samples, 8 steps, guidance 1")
    alone = rows.drop(columns="kd_classifier")
    assert "kd_classifier of" not in headline.headline_caption(alone, "heldout_loss")
