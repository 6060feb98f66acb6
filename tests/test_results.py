"""What notebooks import from eltlab.results."""

from pathlib import Path

import pandas as pd
import pytest
from support.made_up_rows import row

from eltlab import results
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows


def test_rows_are_loaded_compared_and_written_by_these_names(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a" / "rows.jsonl"
    append_rows(path, [row("a", n, 1.0 * n, images_seen=seen) for n in (1, 2) for seen in (500, 1000)])
    table = results.load(tmp_path / "runs")
    assert len(table) == 4
    assert set(results.latest(table)["images_seen"]) == {1000}
    rows = results.comparable(table)
    assert rows["heldout_loss"].tolist() == [1.0, 2.0]
    for written in results.write_table(rows, tmp_path / "out.parquet"):
        assert written.is_file()
    assert pd.read_parquet(tmp_path / "out.parquet")["heldout_loss"].tolist() == [1.0, 2.0]


def test_two_protocols_are_refused_unless_one_is_chosen(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [row("a", 4, 1.0), row("a", 4, 2.0, protocol="bbbb")])
    table = results.load(tmp_path)
    for function in (results.one_protocol, results.comparable):
        with pytest.raises(UserError, match="aaaa and bbbb cannot be compared"):
            function(table)
    assert results.comparable(table, "bbbb")["heldout_loss"].tolist() == [2.0]


def test_every_public_name_is_there() -> None:
    assert all(callable(getattr(results, name)) for name in results.__all__)
