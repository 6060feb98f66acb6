"""Rows to commit: those of whole runs in one file, with what figures need of the runs beside it.

    python -m eltlab.analysis.collect out=analysis/data/NAME.jsonl [samples=SEED] [diagnostics=true] ROWS …

OUT.jsonl has all rows in the order of their runs. NAME/<run>/ beside it holds dynamics.csv and validation.csv
(diagnostics=true) and the tiles of the runs of one seed (samples=SEED). What an earlier call left there is
replaced.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.runs import row_files

DIAGNOSTICS = ("dynamics.csv", "validation.csv")


def collect(table: pd.DataFrame, out: Path, seed: int | None, diagnostics: bool) -> int:
    """Writes OUT.jsonl and what belongs to it; how many rows. Raises UserError for rows that are not of
    run folders, and where NAME/ beside OUT is anything but what an earlier call left."""
    if out.suffix != ".jsonl":
        raise UserError(f"out={out}: rows are a .jsonl file")
    if table.empty:
        raise UserError("no rows to collect; train and evaluate a run first")
    runs = table.drop_duplicates("folder").sort_values("run")
    rows = [
        row for folder in runs["folder"] for row in row_files.read_rows(Path(folder) / "rows.jsonl")
    ]
    if not rows:
        raise UserError("these rows are collected already; name the folders of their runs")
    beside = out.with_suffix("")
    clear_previous(beside, [Path(folder) for folder in runs["folder"]])
    for run in runs.itertuples():
        source, target = Path(run.folder), beside / str(run.run)
        found = [source / name for name in DIAGNOSTICS] if diagnostics else []
        found += sorted(source.glob("samples/*/loops_*.*")) if run.seed == seed else []
        for path in filter(Path.is_file, found):
            write_atomic(target / path.relative_to(source), path.read_bytes())
    write_atomic(out, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return len(rows)


def clear_previous(beside: Path, sources: list[Path]) -> None:
    """Removes what an earlier call left. Raises UserError where that is not all that there is."""
    files = [path for path in beside.rglob("*") if path.is_file()]
    strange = [p for p in files if p.name not in DIAGNOSTICS and not p.match("samples/*/loops_*.*")]
    among = [
        source
        for source in sources
        if beside.resolve() in (source.resolve(), *source.resolve().parents)
    ]
    if strange or among:
        raise UserError(
            f"out={beside}.jsonl: {beside} holds {(strange or among)[0]}; take another name"
        )
    if beside.is_dir():
        shutil.rmtree(beside)


def main(table: pd.DataFrame, keys: Any) -> None:
    if keys.out is None:
        raise UserError("out= is missing, e.g. out=analysis/data/NAME.jsonl")
    if keys.diagnostics not in ("true", "false"):
        raise UserError(f"diagnostics={keys.diagnostics}: true or false")
    if keys.samples is not None and not keys.samples.isdigit():
        raise UserError(f"samples={keys.samples}: the seed whose samples are kept, a whole number")
    seed = None if keys.samples is None else int(keys.samples)
    count = collect(table, Path(keys.out), seed, keys.diagnostics == "true")
    print(f"{count} rows: {keys.out}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out=None, samples=None, diagnostics="false")
