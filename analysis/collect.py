"""Collects the rows of whole runs in one file to commit, with the run files that figures need.

    python -m eltlab.analysis.collect out=analysis/data/NAME.jsonl [samples=SEED] [diagnostics=true] ROWS …

OUT.jsonl has all rows, ordered by run. NAME/<run>/ next to it has dynamics.csv and validation.csv
(diagnostics=true) and the sample grids of the runs of one seed (samples=SEED). Files of an earlier call are
replaced.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.common.errors import UserError
from eltlab.common.files import write_atomic
from eltlab.runs import row_files

DIAGNOSTICS = ("dynamics.csv", "validation.csv")


def collect(table: pd.DataFrame, out: Path, seed: int | None, diagnostics: bool) -> int:
    """Writes OUT.jsonl and the folder OUT/ with the files; returns the number of rows.

    Raises UserError if the rows are not from run folders, or if OUT/ contains files that are not
    from an earlier call.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"out={out}: rows are written to a .jsonl file")
    if table.empty:
        raise UserError("no rows to collect; train and evaluate a run first")
    runs = table.drop_duplicates("folder").sort_values("run")
    rows = [row for folder in runs["folder"] for row in row_files.read_rows(Path(folder) / "rows.jsonl")]
    if not rows:
        raise UserError("these rows are already collected; name the folders of their runs")
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
    """Removes the files of an earlier call. Raises UserError if the folder has other files, or a source."""
    files = [path for path in beside.rglob("*") if path.is_file()]
    strange = [p for p in files if p.name not in DIAGNOSTICS and not p.match("samples/*/loops_*.*")]
    among = [
        source for source in sources if beside.resolve() in (source.resolve(), *source.resolve().parents)
    ]
    if strange or among:
        raise UserError(
            f"out={beside}.jsonl: {beside} contains {(strange or among)[0]}; choose a different name"
        )
    if beside.is_dir():
        shutil.rmtree(beside)


def main(table: pd.DataFrame, keys: Any) -> None:
    if keys.out is None:
        raise UserError("out= is missing, e.g. out=analysis/data/NAME.jsonl")
    if keys.diagnostics not in ("true", "false"):
        raise UserError(f"diagnostics={keys.diagnostics}: true or false")
    if keys.samples is not None and not keys.samples.isdigit():
        raise UserError(f"samples={keys.samples}: give the seed whose samples to keep")
    seed = None if keys.samples is None else int(keys.samples)
    count = collect(table, Path(keys.out), seed, keys.diagnostics == "true")
    print(f"{count} rows: {keys.out}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out=None, samples=None, diagnostics="false")
