"""The table of result rows: loading, comparing and writing it."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.atomic_files import atomic_path
from eltlab.common.errors import UserError
from eltlab.config.identity import defines
from eltlab.runs.row_files import ROWS, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame


# fmt: off
COLUMNS = (
    "kind", "run", "name", "created", "code", "device", "study", "trial", "seed", "data",
    "objective", "supervision", "model", "width", "depth", "unique_layers", "loops_train",
    "loops", "loop_schedule", "steps", "nfe", "guidance", "images_seen", "params_total",
    "params_blocks", "macs_per_pass", "macs_per_sample", "train_flops_total", "protocol",
    "samples", "fd_classifier", "accuracy", "fid", "kid", "precision", "recall", "fvd", "psnr",
    "train_seconds", "images_per_second", "peak_memory_bytes",
)
# fmt: on


def load(*paths: str | Path) -> "DataFrame":
    """One table of all rows under these folders (rows.jsonl of every run) or in these .jsonl files.

    Columns: COLUMNS in order, then further metrics and folder (of the run: `eltlab.load` takes it), then
    each configuration key as cfg.<key>. What a row does not have is NaN (None for text).

    A file of collected rows, NAME.jsonl, may have beside it NAME/<run>/ with what else is kept of its runs.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for path in (Path(path).expanduser() for path in paths or ("runs",)):
        if not path.exists():
            raise UserError(f"{path}: no such folder or file of rows")
        for file in files_of_rows(path) if path.is_dir() else [path]:
            rows.extend({**flat(row), "folder": folder_of(row, file)} for row in read_rows(file))
    table = pd.DataFrame(rows)
    extra = [name for name in table.columns if name not in COLUMNS]
    order = [*COLUMNS, *sorted(extra, key=lambda name: name.startswith("cfg."))]
    return table.reindex(columns=order)


def files_of_rows(folder: Path) -> list[Path]:
    """Every rows.jsonl below a folder; links to folders are followed, each folder is entered once."""
    found, entered = [], set()
    for here, inner, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in entered:
            inner.clear()
            continue
        entered.add(place)
        inner.sort()
        found += [Path(here, name) for name in files if name == ROWS]
    return sorted(found)


def folder_of(row: dict[str, Any], file: Path) -> str:
    """Where what belongs to a row's run lies."""
    if file.name == ROWS:
        return str(file.parent)
    return str(file.with_suffix("") / row.get("run", ""))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its configuration spread out as cfg.<dotted.key>."""
    cfg = {f"cfg.{key}": value for key, value in row.get("cfg", {}).items()}
    return {**{key: value for key, value in row.items() if key != "cfg"}, **cfg}


def one_protocol(table: "DataFrame") -> str:
    """The protocol id that all rows share. Raises UserError naming both where there are two."""
    found = table[["protocol", "protocol_text"]].drop_duplicates("protocol")
    if len(found) == 1:
        return str(found["protocol"].iloc[0])
    if found.empty:
        raise UserError("no rows to compare; train and evaluate a run first")
    first, second = (json.loads(text) for text in found["protocol_text"].iloc[:2])
    names = " and ".join(found["protocol"].iloc[:2])
    differing = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    parts = ", ".join(f"{key} {first.get(key)} against {second.get(key)}" for key in differing)
    raise UserError(
        f"rows of protocols {names} cannot be compared: {parts}; choose one with protocol=ID"
    )


def comparable(table: "DataFrame", protocol: str | None = None) -> "DataFrame":
    """The evaluations that may stand side by side: of one protocol, each run at its latest.

    Raises UserError where there are none, where protocols are mixed, where one name and seed stand for
    two runs, or where runs of one name differ in more than their seeds.
    """
    rows = table[table["kind"] == "eval"]
    if protocol is not None:
        rows = rows[rows["protocol"] == protocol]
    if rows.empty:
        known = ", ".join(table.loc[table["kind"] == "eval", "protocol"].dropna().unique())
        if known:
            raise UserError(f"protocol={protocol}: the rows are of {known}")
        raise UserError(
            f"no evaluations among {len(table)} rows; train with evaluate=true, or measure the runs by "
            "python -m eltlab.evaluate run=DIR"
        )
    one_protocol(rows)
    rows = latest(rows)
    for (name, seed), runs in rows.groupby(["name", "seed"])["run"].unique().items():
        if len(runs) > 1:
            raise UserError(
                f"name {name}, seed {seed} stands for {len(runs)} runs of different configurations "
                f"({', '.join(runs)}); give each arm a name= of its own, or name the folders to compare"
            )
    _one_configuration(rows)
    return rows


def _one_configuration(rows: "DataFrame") -> None:
    """Raises UserError where runs of one name differ in more than their seeds: they are no seeds of one
    arm. A key that a row does not have (an older version wrote it) differs from none."""
    keys = [name.removeprefix("cfg.") for name in rows.columns if name.startswith("cfg.")]
    for key in (key for key in keys if key != "seed" and defines(key)):
        values = rows[f"cfg.{key}"].map(str, na_action="ignore")
        if values.nunique() < 2:
            continue
        counts = values.groupby(rows["name"]).nunique()
        if counts.max() > 1:
            name = counts.idxmax()
            found = ", ".join(values[rows["name"] == name].dropna().unique())
            raise UserError(
                f"name {name} stands for runs of different {key} ({found}); "
                "give each arm a name= of its own, or name the folders to compare"
            )


def latest(rows: "DataFrame") -> "DataFrame":
    """Each run where it had seen the most images."""
    return rows[rows["images_seen"] == rows.groupby("run")["images_seen"].transform("max")]


def write_table(table: "DataFrame", out: Path) -> tuple[Path, Path]:
    """The table as OUT.parquet and OUT.csv; a cell that is a list is its JSON text."""
    table = table.apply(_plain).reset_index(drop=True)
    parquet, sheet = out.with_suffix(".parquet"), out.with_suffix(".csv")
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary)
    with atomic_path(sheet) as temporary:
        table.to_csv(temporary, index=False)
    return parquet, sheet


def _plain(column: Any) -> Any:
    """A column of one type: text where values of several types or lists meet."""
    present = column.dropna()
    if column.dtype != object or present.map(type).isin([str]).all():
        return column
    if present.map(type).isin([bool]).all():
        return column.astype("boolean")
    return column.map(_text, na_action="ignore")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
