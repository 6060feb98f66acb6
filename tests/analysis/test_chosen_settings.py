"""Settings chosen after training are chosen by other rows than those that are reported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.analysis_commands import run
from support.made_up_rows import row, table

from eltlab.analysis.chosen_settings import (
    ChosenSetting,
    choose_settings,
    reported_rows,
    settings_as_arms,
)
from eltlab.analysis.headline import headline
from eltlab.analysis.points import caption, points
from eltlab.analysis.scaling import power_laws
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows

TRAIN = {"split": "train", "protocol": "train", "protocol_text": '{"reference": "train"}'}
TEST = {"split": "test", "protocol": "test", "protocol_text": '{"reference": "test"}'}


def measured(
    name: str, values: dict[float, float], seeds: tuple = (0, 1), **more: Any
) -> list[dict[str, Any]]:
    """An arm's kernel distance by guidance, at its trained loops."""
    return [
        row(name, more.get("loops", 4), 0.2, seed=seed, guidance=guidance, kd_classifier=value + 0.01 * seed,
            **{"sample_seed": seed} | {key: value for key, value in more.items() if key != "loops"})
        for guidance, value in values.items() for seed in seeds
    ]  # fmt: skip


def study() -> list[dict[str, Any]]:
    """By the rows to choose by, 2 is best for the elastic arm and 1 for the twin. Reported rows disagree."""
    twin = {"layers": 8, "trained": 1, "loops": 1}
    return [
        *measured("elastic", {1.0: 9.0, 2.0: 5.0, 3.0: 6.0}, sample_seed=100, **TRAIN),
        *measured("twin", {1.0: 4.0, 2.0: 7.0, 3.0: 8.0}, sample_seed=100, **TRAIN, **twin),
        *measured("elastic", {1.0: 9.5, 2.0: 6.0, 3.0: 5.5}, **TEST),
        *measured("twin", {1.0: 4.5, 2.0: 4.0, 3.0: 8.5}, **TEST, **twin),
    ]


def test_each_arm_is_reported_at_the_setting_that_other_rows_chose() -> None:
    rows, choices = choose_settings(table(study()))
    assert rows.groupby("name")["guidance"].unique().map(list).to_dict() == {"elastic": [2.0], "twin": [1.0]}
    assert set(rows["split"]) == {"test"} and set(rows["sample_seed"]) == {0, 1}
    assert choices == [
        ChosenSetting("elastic", {"guidance": "2"}, {"guidance": ["1", "2", "3"]}, "kd_classifier", [100]),
        ChosenSetting("twin", {"guidance": "1"}, {"guidance": ["1", "2", "3"]}, "kd_classifier", [100]),
    ]


def test_figures_and_tables_say_what_was_chosen() -> None:
    rows = table(study())
    lines = headline(rows, "kd_classifier").set_index("arm")
    assert lines.loc["elastic", "kd_classifier"] == pytest.approx(6.005)
    assert lines.loc["elastic", "ratio"] == pytest.approx(6.005 / 4.505, rel=1e-3)
    text = caption(rows, "kd_classifier")
    assert "against the test split, 8 steps, elastic at guidance 2, twin at guidance 1 (chosen by" in text
    assert (
        "(chosen by kd_classifier against the training split with sample seed 100, for each arm from " in text
    )
    assert "from guidance 1, 2, 3); n = 2 seeds" in text
    last = ("twin", "train", 3.0)
    fewer = [each for each in study() if (each["name"], each["split"], each["guidance"]) != last]
    text = caption(table(fewer), "kd_classifier")
    assert "for elastic from guidance 1, 2, 3; for twin from guidance 1, 2)" in text


def test_a_setting_that_all_arms_share_is_named_once() -> None:
    rows = [*measured("a", {1.0: 9.0}, **TEST, temperature=4.5)]
    for temperature in (3.0, 4.5):
        rows += measured("a", {1.0: -temperature}, sample_seed=9, **TRAIN, temperature=temperature)
    text = caption(table(rows), "kd_classifier")
    assert "8 steps, guidance 1, temperature 4.5 (chosen by" in text and "from temperature 3, 4.5)" in text


def test_the_reported_rows_decide_nothing() -> None:
    """Whatever the reported values are, the chosen settings are the same."""
    changed = [
        each | ({"kd_classifier": 0.1 * each["guidance"]} if each["split"] == "test" else {})
        for each in study()
    ]
    assert choose_settings(table(changed))[1] == choose_settings(table(study()))[1]


def test_without_a_test_split_the_reported_rows_are_those_of_the_runs_own_sample_seeds() -> None:
    rows = [*measured("a", {1.0: 9.0, 2.0: 5.0}, **TRAIN)]
    rows += measured("a", {1.0: 4.0, 2.0: 7.0}, sample_seed=100, **TRAIN)
    found, [choice] = choose_settings(table(rows))
    assert choice.chosen == {"guidance": "1"} and set(found["sample_seed"]) == {0, 1}
    assert points(table(rows), "kd_classifier")["kd_classifier"].item() == pytest.approx(9.005)


def test_a_reported_sample_seed_of_another_run_of_the_arm_chooses_nothing() -> None:
    """Run 0 was also sampled with seed 1, which is what run 1 reports."""
    rows = [*measured("a", {1.0: 9.0, 2.0: 5.0}, **TRAIN)]
    rows += measured("a", {1.0: 4.0, 2.0: 7.0}, seeds=(0,), sample_seed=1, **TRAIN)
    with pytest.raises(
        UserError, match=r"a was measured at several values of guidance; choose by other samples"
    ):
        choose_settings(table(rows))


def test_several_settings_without_rows_to_choose_by_are_refused_with_the_command() -> None:
    rows = table(measured("a", {1.0: 9.0, 1.5: 5.0}, **TEST))
    command = r"python -m eltlab.evaluate run=DIR 'sampler.guidance=\[1,1.5\]' seed=2 metrics.split=train"
    with pytest.raises(UserError, match=rf"{command}; or select one with guidance=1$"):
        points(rows)


def test_a_chosen_setting_that_no_row_reports_is_refused_with_the_command() -> None:
    rows = [each for each in study() if (each["split"], each["guidance"]) != ("test", 2.0)]
    with pytest.raises(
        UserError, match=r"elastic: guidance 2 was chosen .* run=DIR sampler.guidance=2 metrics.split=test"
    ):
        reported_rows(table(rows))


def test_a_biased_distance_chooses_nothing() -> None:
    rows = table(study()).rename(columns={"kd_classifier": "fd_classifier"})
    with pytest.raises(UserError, match="can only be chosen by an unbiased distance"):
        reported_rows(rows)


def test_settings_are_compared_over_the_runs_that_have_all_of_them() -> None:
    """The second run is better, and was measured at one setting only."""
    rows = [*measured("a", {1.0: 9.0, 2.0: 5.0}, **TEST)]
    rows += measured("a", {1.0: 6.0, 2.0: 7.0}, seeds=(0,), sample_seed=100, **TRAIN)
    rows += measured("a", {2.0: 1.0}, seeds=(1,), sample_seed=100, **TRAIN)
    assert choose_settings(table(rows))[1][0].chosen == {"guidance": "1"}


def test_rows_of_one_setting_need_no_choice() -> None:
    """Also if arms differ."""
    rows = [*measured("a", {1.0: 9.0}, **TEST), *measured("b", {2.0: 5.0}, **TEST)]
    found, choices = choose_settings(table(rows))
    assert len(found) == 4 and choices == []
    assert "a at guidance 1, b at guidance 2" in caption(table(rows), "kd_classifier")


def test_a_table_of_both_splits_reports_the_test_split_if_every_arm_has_it() -> None:
    rows = [*measured("a", {1.0: 9.0}, **TRAIN), *measured("a", {1.0: 8.0}, **TEST)]
    assert set(reported_rows(table(rows))["split"]) == {"test"}
    assert set(reported_rows(table(rows), "train")["split"]) == {"train"}
    with pytest.raises(UserError, match="reference train against test"):
        reported_rows(table([*rows, *measured("b", {1.0: 9.0}, **TRAIN)]))


def test_a_command_takes_a_setting_or_makes_each_an_arm(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", measured("a", {1.0: 9.0, 1.5: 5.0}, seeds=(0,), **TEST))
    refused = run("headline", "rows.jsonl", "metric=kd_classifier", cwd=tmp_path)
    assert refused.returncode == 2 and "or select one with guidance=1" in refused.stderr
    one = run("headline", "rows.jsonl", "metric=kd_classifier", "guidance=1.5", cwd=tmp_path)
    assert one.returncode == 0 and "5.00" in one.stdout and "9.00" not in one.stdout, one.stderr
    every = run("headline", "rows.jsonl", "metric=kd_classifier", "settings=all", cwd=tmp_path)
    assert "a guidance 1.5" in every.stdout and "9.00" in every.stdout, every.stderr
    unknown = run("headline", "rows.jsonl", "guidance=7", cwd=tmp_path)
    assert unknown.stderr == "error: guidance=7: values: 1, 1.5\n"
    assert "settings=x: chosen" in run("headline", "rows.jsonl", "settings=x", cwd=tmp_path).stderr


def test_settings_as_arms_have_twins_of_their_own_setting() -> None:
    rows = settings_as_arms(table([each for each in study() if each["split"] == "test"]))
    lines = headline(rows, "kd_classifier").set_index("arm")
    assert lines.loc["elastic guidance 2", "twin"] == "twin guidance 2"


def test_old_rows_have_no_split_and_one_setting() -> None:
    rows = [row("a", 4, 5.0), row("a", 4, 6.0, sample_seed=9)]
    assert len(reported_rows(table(rows))) == 2


TWIN = {"layers": 8, "trained": 1, "loops": 1}


def ratio_and_reason(rows: list[dict[str, Any]], metric: str = "kd_classifier") -> tuple[Any, Any]:
    """Of "÷ twin" of the elastic arm."""
    line = headline(table(rows), metric).set_index("arm").loc["elastic"]
    return line["ratio"], line["no_ratio"]


def test_arms_at_different_settings_have_no_ratio_unless_each_was_chosen_from_the_same_candidates() -> None:
    chosen = study()
    assert ratio_and_reason(chosen)[1] is None
    rows = [*measured("elastic", {2.0: 6.0}, **TEST), *measured("twin", {1.0: 4.5}, **TEST, **TWIN)]
    ratio, reason = ratio_and_reason(rows)
    assert np.isnan(ratio) and reason == "settings differ and were not chosen: guidance"
    last = ("twin", "train", 3.0)
    fewer = [each for each in chosen if (each["name"], each["split"], each["guidance"]) != last]
    assert ratio_and_reason(fewer)[1] == "settings differ and were not chosen: guidance"


def test_the_held_out_loss_depends_on_the_average_and_not_on_sampling() -> None:
    rows = [*measured("elastic", {2.0: 6.0}, **TEST), *measured("twin", {1.0: 4.5}, **TEST, **TWIN)]
    assert ratio_and_reason(rows, "heldout_loss") == (1.0, None)
    lengths = {"elastic": 0.05, "twin": 0.1}
    rows = [each | {"ema_length": lengths[each["name"]]} for each in rows]
    assert ratio_and_reason(rows, "heldout_loss")[1] == "settings differ and were not chosen: ema_length"


def test_a_fit_takes_arms_of_one_setting() -> None:
    rows = [
        row(f"u{n}", 1, 0.2, layers=n, trained=1, seed=seed, kd_classifier=30 / n + seed, steps=steps)
        for n, steps in ((1, 8), (2, 8), (4, 8), (8, 64)) for seed in (0, 1, 2)
    ]  # fmt: skip
    [reason] = power_laws(table(rows), "kd_classifier").values()
    assert reason == "settings differ and were not chosen: steps"
    same = table([each | {"steps": 8} for each in rows])
    assert "settings" not in str(power_laws(same, "kd_classifier"))
