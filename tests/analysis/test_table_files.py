"""Tables are written as Markdown or CSV."""

import csv
from pathlib import Path

import pytest
from support.analysis_commands import TABLES, run


@pytest.mark.parametrize("name", TABLES)
def test_out_writes_the_printed_table_as_markdown_or_csv(name: str, tmp_path: Path) -> None:
    rows = TABLES[name][0]
    for suffix in (".md", ".csv"):
        out = tmp_path / f"table{suffix}"
        done = run(name, *rows, f"out={out}", cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == f"table: {out}", done.stderr
    cells = list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))
    assert cells[0][0] == "arm" and len(cells) > 2
    printed = [line.split() for line in done.stdout.splitlines()]
    for row in cells:  # without the spaces between cells
        assert " ".join(row).split() in printed
    heading, rule, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert heading == f"| {' | '.join(cells[0])} |" and set(rule) == {"|", "-"}
    assert lines == [f"| {' | '.join(row)} |" for row in cells[1:]]
