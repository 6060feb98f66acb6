"""The command that prints the table of one study."""

from pathlib import Path

from support.analysis_commands import run
from support.made_up_rows import row, unique

from eltlab.runs.row_files import append_rows


def test_the_table_has_the_arms_of_the_one_study(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [row("made-up/elastic", 4, 10.0), *unique("made-up/twin", 8, 5.0)])
    done = run("study", "rows.jsonl", cwd=tmp_path)
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["elastic", "twin"]


def test_rows_of_two_studies_are_refused(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", [row("a", 4, 10.0), row("b", 2, 10.0, study="other")])
    done = run("study", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: the rows are of made-up, other; give the rows of one study\n"
