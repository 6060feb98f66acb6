"""The table of a study: one line per arm, with means over seeds at each loop count."""

from support.made_up_rows import arm, row, table, unique

from eltlab.analysis.arm_table import arm_lines, arm_rows


def test_a_line_per_arm_with_its_size_and_the_mean_over_seeds_at_each_loop_count() -> None:
    rows = table([
        *arm("study/elastic", {1: 40.0, 4: 10.0}),
        *arm("study/elastic", {1: 60.0, 4: 20.0}, seed=1),
        *unique("study/twin", 8, 5.0),
    ])  # fmt: skip
    assert arm_rows(rows, "study", "heldout_loss") == [
        ["arm", "seeds", "layers x loops", "parameters", "training FLOPs", "at 1", "at 4"],
        ["elastic", "2", "2 x 4", "2k", "1T", "50", "15"],
        ["twin", "1", "8 x 1", "8k", "1T", "5", ""],
    ]


def test_schedules_are_left_out() -> None:
    """Their loops are a result, not a count that arms share."""
    rows = table([row("a", 4, 5.0), row("a", 2.5, 6.0, loop_schedule="4to1")])
    assert arm_rows(rows, "study", "heldout_loss")[0][-1] == "at 4"
    assert len(arm_rows(rows, "study", "heldout_loss")) == 2


def test_without_the_metric_of_the_study_another_distance_is_shown() -> None:
    rows = table([row("a", 4, 5.0, fid=7.0)])
    for metric, shown in (("fid", "fid"), ("params_kept", "heldout_loss"), ("fvd", "heldout_loss")):
        lines = arm_lines(rows.assign(fvd=None), "study", metric)
        assert lines[0] == f"{shown} at each loop count, mean over seeds"
        assert lines[2].split()[-1] == {"heldout_loss": "5", "fid": "7"}[shown]
    old = table([row("a", 4, None, fd_classifier=7.0)])
    assert arm_lines(old, "study", "fvd")[0].startswith("fd_classifier ")


def test_settings_are_never_averaged() -> None:
    rows = table([row("study/a", 4, 5.0), row("study/a", 4, 7.0, guidance=2.0)])
    lines = arm_rows(rows, "study", "heldout_loss")[1:]
    assert [(line[0], line[-1]) for line in lines] == [("a guidance 1", "5"), ("a guidance 2", "7")]


def test_different_losses_are_in_no_table() -> None:
    rows = [row("a", 4, 5.0, heldout_protocol="aa"), row("b", 4, 1.0, heldout_protocol="bb")]
    [line] = arm_lines(table(rows), "study", "heldout_loss")
    assert line.startswith("no table of heldout_loss: the rows measure 2 different losses")
    measured = table([each | {"fid": 7.0} for each in rows])
    assert arm_lines(measured, "study", "heldout_loss")[0].startswith("fid at each loop count")
