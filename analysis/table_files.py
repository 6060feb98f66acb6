"""Writes tables as Markdown or CSV."""

import csv
import io
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.common.files import write_atomic


def format_markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its heading."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def save_table(rows: list[list[str]], out: str) -> Path:
    """Writes the cells of a table to OUT.md or OUT.csv, depending on its suffix."""
    path = Path(out).expanduser()
    if path.suffix == ".md":
        write_atomic(path, format_markdown(rows) + "\n")
    elif path.suffix == ".csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        write_atomic(path, buffer.getvalue())
    else:
        raise UserError(f"out={out}: a table is a .md or .csv file")
    return path
