"""The performance tables: which rows of bench they need, and which call they show."""

from pathlib import Path

from support.analysis_commands import run
from support.paths import ROOT

from eltlab.runs.row_files import append_rows, read_rows

ROWS = ROOT / "benchmarks" / "rows.jsonl"


def test_missing_rows_are_reported(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    done = run("performance", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and "make bench" in done.stderr


def test_a_call_without_samples_or_without_ilsd_makes_no_table(tmp_path: Path) -> None:
    rows = read_rows(ROWS)
    kept = {
        "no_samples": [row for row in rows if row["measure"] == "train"],
        "no_ilsd": [row for row in rows if row["supervision"] == "final"],
    }
    for name, some in kept.items():
        assert append_rows(tmp_path / f"{name}.jsonl", some)
        done = run("performance", f"{name}.jsonl", cwd=tmp_path)
        assert done.returncode == 2 and "measured both ILSD and sampling" in done.stderr


def test_the_latest_call_of_a_width_is_shown(tmp_path: Path) -> None:
    rows = [row for row in read_rows(ROWS) if row["width"] == 64]
    latest = max(rows, key=lambda row: row["created"])["call"]
    rows = [row for row in rows if row["call"] == latest]
    old = [{**row, "call": "earlier", "created": f"1{row['created'][1:]}", "mfu": 0.011} for row in rows]
    append_rows(tmp_path / "rows.jsonl", [*rows, *old])
    done = run("performance", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = done.stdout
    assert page.count("| 64, ") == 3 and "1%" not in page.replace("11%", "").replace("31%", "")
