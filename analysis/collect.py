"""Rows to commit: those of whole runs in one file, with what figures need of the runs beside it.

    python -m eltlab.analysis.collect out=analysis/data/NAME.jsonl [samples=SEED] [diagnostics=true] ROWS …

OUT.jsonl has all rows in the order of their runs. NAME/<run>/ beside it holds dynamics.csv and validation.csv
(diagnostics=true) and the tiles of the runs of one seed (samples=SEED). What was there is replaced.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from eltlab import results
from eltlab.analysis import command
from eltlab.errors import UserError
from eltlab.files import write_atomic

DIAGNOSTICS = ("dynamics.csv", "validation.csv")


def collect(table: pd.DataFrame, out: Path, seed: int | None, diagnostics: bool) -> int:
    """Writes OUT.jsonl and what belongs to it; how many rows. Raises UserError for none."""
    if out.suffix != ".jsonl":
        raise UserError(f"out={out}: rows are a .jsonl file")
    runs = table.drop_duplicates("folder").sort_values("run")
    if runs.empty:
        raise UserError("no rows to collect; train and evaluate a run first")
    rows = [
        row for folder in runs["folder"] for row in results.read_rows(Path(folder) / "rows.jsonl")
    ]
    beside = out.with_suffix("")
    if beside.is_dir():
        shutil.rmtree(beside)
    for run in runs.itertuples():
        source, target = Path(run.folder), beside / str(run.run)
        found = [source / name for name in DIAGNOSTICS] if diagnostics else []
        found += sorted(source.glob("samples/*/loops_*.png")) if run.seed == seed else []
        for path in filter(Path.is_file, found):
            write_atomic(target / path.relative_to(source), path.read_bytes())
    write_atomic(out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return len(rows)


def main(table: pd.DataFrame, asked: Any) -> None:
    if asked.out is None:
        raise UserError(f"out= is missing; usage:\n{str(__doc__).strip()}")
    seed = None if asked.samples is None else int(asked.samples)
    count = collect(table, Path(asked.out), seed, asked.diagnostics == "true")
    print(f"{count} rows: {asked.out}")


if __name__ == "__main__":
    command.run(main, str(__doc__), out=None, samples=None, diagnostics="false")
