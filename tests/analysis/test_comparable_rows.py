"""Which rows may be compared: of one protocol, and one run per name and seed."""

import json
from pathlib import Path

import pytest
from support.made_up_rows import TWO_PROTOCOLS, row, table

from eltlab.analysis.comparable_rows import comparable, one_protocol, print_once
from eltlab.analysis.points import points
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load
from eltlab.runs.row_files import append_rows


def test_a_protocol_can_be_chosen() -> None:
    assert set(points(TWO_PROTOCOLS, protocol="bbbb")["arm"]) == {"b"}


def test_rows_of_two_protocols_are_refused_unless_one_is_chosen() -> None:
    with pytest.raises(UserError, match="rows of protocols aaaa and bbbb cannot be compared"):
        comparable(TWO_PROTOCOLS)
    assert comparable(TWO_PROTOCOLS, "bbbb")["protocol"].unique().tolist() == ["bbbb"]


def test_only_the_rows_from_the_end_of_a_run_are_compared() -> None:
    rows = [row("elt", 1, value, images_seen=images) for images, value in ((64, 9.0), (128, 5.0))]
    assert comparable(table(rows))["heldout_loss"].tolist() == [5.0]


def test_an_unknown_protocol_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="protocol=cccc: no row has it; choose one of aaaa, bbbb"):
        points(TWO_PROTOCOLS, protocol="cccc")


def test_runs_that_differ_in_more_than_their_seed_are_refused() -> None:
    one, other = (row("a", 4, 1.0, seed=s, **{"cfg.optim.lr": s, "cfg.seed": s}) for s in (0, 1))
    with pytest.raises(UserError, match=r"name a stands for runs of different optim\.lr \(0, 1\)"):
        points(table([one, other]))
    other["cfg.optim.lr"] = None  # an older version did not write it
    assert len(points(table([one, other]))) == 1


def test_two_protocols_are_refused_and_both_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    texts = {name: json.dumps({"samples": 100, "extractor": name}) for name in ("aaa", "bbb")}
    append_rows(path, [row("elt", 1, 5.0, protocol=name, protocol_text=texts[name]) for name in texts])
    with pytest.raises(UserError, match="aaa and bbb cannot be compared: extractor aaa against bbb"):
        one_protocol(load(path))


def test_one_name_and_seed_is_one_run(tmp_path: Path) -> None:
    rows = [row("elt", 1, 5.0), row("elt", 1, 6.0, run="elt/other", sample_seed=9)]
    append_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="name elt, seed 0 stands for 2 runs"):
        comparable(load(tmp_path))


def test_a_table_without_evaluations_is_refused(tmp_path):
    with pytest.raises(UserError, match="no evaluations among 0 rows"):
        comparable(load(tmp_path))


def test_rows_of_different_code_are_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_once.cache_clear()
    new = {"source": "aaaa", "evaluated_source": "aaaa"}
    rows = table([row("elt", loops, 5.0, **new) for loops in (1, 2, 3)])
    comparable(rows)
    assert capsys.readouterr().err == ""
    others = [
        row("old", 1, 5.0),
        row("old", 2, 5.0),
        row("late", 1, 5.0, **new | {"evaluated_source": "bbbb"}),
    ]
    mixed = table([*rows.to_dict("records"), *others])
    assert len(comparable(mixed)) == len(comparable(mixed)) == 6
    assert capsys.readouterr().err == (
        "note: the rows are of different code (column source): aaaa (3 rows), unknown (2 rows), "
        "aaaa measured by bbbb (1 rows)\n"
    )


def test_rows_that_are_all_older_than_the_column_are_not_reported(capsys: pytest.CaptureFixture[str]) -> None:
    comparable(table([row("old", 1, 5.0), row("older", 2, 5.0)]))
    assert capsys.readouterr().err == ""
