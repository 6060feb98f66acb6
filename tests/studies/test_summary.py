"""The table that a sweep prints at its end."""

import json
from pathlib import Path

from support.paths import ROOT

from eltlab.analysis.arm_table import arm_lines
from eltlab.analysis.comparable_rows import comparable
from eltlab.runs.result_table import load
from eltlab.studies.summary import arm_tables

ROWS = ROOT / "analysis" / "data" / "loops_vs_depth_quick.jsonl"


def test_a_table_shows_one_protocol_and_the_latest_rows(tmp_path: Path) -> None:
    """Rows of earlier steps or of a second protocol do not change the table of a study."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    wrong = {"fd_classifier": 12345.0}
    early = [{**row, **wrong, "images_seen": row["images_seen"] // 2} for row in rows]
    other = [{**row, "fd_classifier": 7.0, "protocol": "0123456789"} for row in rows]
    early_other = [{**row, **wrong, "protocol": "0123456789"} for row in early]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in early + rows + early_other + other))

    own = arm_lines(comparable(load(ROWS)), rows[0]["study"], "fd_classifier")
    assert arm_tables(load(ROWS), rows[0]["study"], "fd_classifier") == own
    lines = arm_tables(load(path), rows[0]["study"], "fd_classifier")
    assert lines[: len(own) + 1] == [f"protocol {rows[0]['protocol']}", *own]
    assert lines[len(own) + 1] == "protocol 0123456789" and len(lines) == 2 * len(own) + 2
    assert {line.split()[-1] for line in lines[len(own) + 4 :]} == {"7"}
