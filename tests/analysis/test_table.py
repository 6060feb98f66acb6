"""The command that writes all rows as one table, in two formats."""

import json
from pathlib import Path

import pandas as pd
import pytest
from support.analysis_commands import run
from support.made_up_rows import row
from support.paths import ROOT

from eltlab.runs.result_table import load
from eltlab.runs.row_files import append_rows


def test_parquet_and_csv_equal_the_table_that_load_returns(tmp_path: Path) -> None:
    rows = [ROOT / "analysis" / "data" / f"{name}.jsonl" for name in ("headline", "headline_masked")]
    done = run("table", "out=all.parquet", *rows, cwd=tmp_path)
    expected = load(*rows)
    assert done.stdout == f"{len(expected)} rows: all.parquet all.csv\n"
    for table in (pd.read_parquet(tmp_path / "all.parquet"), pd.read_csv(tmp_path / "all.csv")):
        assert list(table.columns) == list(expected.columns) and len(table) == len(expected)
        for column in ("fd_classifier", "loops", "macs_per_sample", "cfg.optim.lr"):
            assert table[column].tolist() == pytest.approx(expected[column].tolist(), nan_ok=True)
        assert table["run"].tolist() == expected["run"].tolist()
        assert json.loads(table["cfg.evaluate_loops"].iloc[0]) == [1, 2, 3, 4, 5, 6]


def test_the_rows_of_one_protocol_are_kept(tmp_path: Path) -> None:
    rows = [row("a", n, 1.0 * n, protocol=name) for name in ("aaaa", "bbbb") for n in (1, 2)]
    append_rows(tmp_path / "rows.jsonl", [*rows, row("b", 4, 9.0, protocol="bbbb", seed=1)])
    done = run("table", "protocol=bbbb", "rows.jsonl", cwd=tmp_path)
    assert done.stdout == "3 rows: table.parquet table.csv\n"  # both kinds of file, at the default place
    table = pd.read_parquet(tmp_path / "table.parquet")
    assert set(table["protocol"]) == {"bbbb"} and table["heldout_loss"].tolist() == [1.0, 2.0, 9.0]
