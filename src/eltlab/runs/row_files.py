"""The rows a run leaves, and the table they make. Append-only facts; tables and plots are views."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock

ROWS = "rows.jsonl"  # of every run, and of an encoded set


# What no evaluation is without: whose it is, of what protocol, and when in training.
NEEDED = (
    "name",
    "run",
    "seed",
    "data",
    "protocol",
    "protocol_text",
    "loop_schedule",
    "images_seen",
)


# What makes two rows of one run the same measurement: a second one is not written.
IDENTITY = ("kind", "protocol", "loops", "loop_schedule", "images_seen", "sample_seed")


def measurement_key(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["kind"] == "bench":  # a machine is timed again and again: no measurement is the same
        return row["kind"], row["created"]
    return tuple(requested_loops(row) if key == "loops" else row.get(key) for key in IDENTITY)


def requested_loops(row: dict[str, Any]) -> int | None:
    """The loops that were asked for, where they were a count: those that a schedule or halting spent are a
    result, and its name says what was asked for."""
    return row.get("loops") if row.get("loop_schedule") == "constant" else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of one file; none where it does not exist. UserError names a line that is no row."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no file of rows; those are .jsonl") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not a row (JSON); delete the line") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise UserError(f"{path}, line {number}: not a row, which has a kind")
        missing = [key for key in NEEDED if key not in row] if row["kind"] == "eval" else []
        if missing:
            raise UserError(
                f"{path}, line {number}: an evaluation without {', '.join(missing)}; delete the line, or "
                "give it these"
            )
        rows.append(row)
    return rows


def append_rows(path: Path, new: Iterable[dict[str, Any]]) -> int:
    """Adds the rows that are not there yet, under a lock, by renaming a whole file; returns how many."""
    with file_lock(path.with_suffix(".lock")):
        rows = read_rows(path)
        known = {measurement_key(row) for row in rows}
        added = [row for row in new if measurement_key(row) not in known]
        if added:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows + added)
            write_atomic(path, text)
    return len(added)
