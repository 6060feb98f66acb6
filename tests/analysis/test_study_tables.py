"""The tables of pages: which columns they have, and what is in a cell."""

import pytest
from support.made_up_rows import arm, row, table, unique

from eltlab.analysis.points import name_arms
from eltlab.analysis.study_tables import exit_rows, grid_rows, point_rows
from eltlab.common.errors import UserError

NEW = {
    "kd_classifier": 2.0,
    "fd_classifier": 30.0,
    "fd_classifier_inf": 8.0,
    "memorised": 0.04,
    "train_loss": 0.1,
}


def test_a_table_has_the_unbiased_metrics_memorisation_and_the_training_loss() -> None:
    rows = [*arm("e", {4: 0.2, 1: 0.3}, **NEW), *arm("e", {4: 0.4, 1: 0.3}, seed=1, **NEW)]
    titles, first, second = point_rows(name_arms(table(rows)))
    assert titles[4:-1] == ["heldout_loss", "kd_classifier", "fd_classifier_inf", "memorised", "train_loss"]
    assert first[:4] == ["e", "2 x 4", "1", "2M"] and second[2] == "4" and second[-1] == "2"
    assert second[4].startswith("0.3000 ± 1.27") and second[5] == "2.0000 ± 0.0000"


def test_rows_without_an_unbiased_metric_show_the_biased_ones_with_their_floor() -> None:
    rows = name_arms(table(arm("e", {4: None}, fd_classifier=30.0, fd_ideal=14.0)))
    assert point_rows(rows)[0][4:-1] == ["fd_classifier", "fd_ideal", "accuracy"]
    assert point_rows(rows)[1][4] == "30.00"


def test_what_was_not_measured_is_empty_and_one_seed_has_its_standard_error() -> None:
    rows = [
        *arm("e", {4: 0.2}, heldout_loss_se=0.01, kd_classifier=1.0),
        *unique("u", 8, None, kd_classifier=3.0),
    ]
    _, first, second = point_rows(name_arms(table(rows)))
    assert first[4] == "0.2000 ± 0.0100 (se)" and second[4:6] == ["", "3.00"]


def test_columns_can_be_chosen() -> None:
    rows = name_arms(table(arm("e", {4: 0.2}, **NEW)))
    assert point_rows(rows, ["memorised"])[0][4:-1] == ["memorised"]
    with pytest.raises(UserError, match="no column recall"):
        point_rows(rows, ["recall"])


def test_a_grid_has_a_line_per_arm_and_a_column_per_constant_loop_count() -> None:
    rows = [*arm("e", {1: 0.3, 4: 0.2}), *unique("u", 8, 0.1), row("e", 2.5, 0.2, loop_schedule="4to1")]
    titles, elastic, twin = grid_rows(name_arms(table(rows)), "heldout_loss")
    assert titles == [
        "arm",
        "layers x loops",
        "parameters",
        "images",
        "training FLOPs",
        "seeds",
        "at 1",
        "at 4",
    ]
    assert elastic == ["e", "2 x 4", "2k", "1,000", "1T", "1", "0.3000", "0.2000"]
    assert twin[-2:] == ["0.1000", ""]


def test_the_exits_up_to_the_trained_one_are_averaged() -> None:
    losses = {1: 0.5, 2: 0.3, 3: 0.25, 4: 0.2, 6: 9.0}
    rows = [*arm("e", losses), *arm("e", {n: loss + 0.1 for n, loss in losses.items()}, seed=1)]
    _, line = exit_rows(name_arms(table(rows)))
    assert line[:2] == ["e", "2 x 4"] and line[-1] == "2"
    assert line[2].startswith("0.3625 ± ") and line[3].startswith("0.2500 ± ")
    assert line[4] == f"{(0.3 / 0.2 + 0.4 / 0.3) / 2:.3f}"
