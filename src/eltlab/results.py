"""The rows a run leaves, and the table they make. Append-only facts; tables and plots are views."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.config import Config, EncodeConfig, defines, flatten
from eltlab.errors import UserError
from eltlab.files import locked, renamed, write_atomic

if TYPE_CHECKING:
    from pandas import DataFrame

# The columns every table has, in order. Metrics add columns behind them; none is renamed.
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


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["kind"] == "bench":  # a machine is timed again and again: no measurement is the same
        return row["kind"], row["created"]
    return tuple(asked_loops(row) if key == "loops" else row.get(key) for key in IDENTITY)


def asked_loops(row: dict[str, Any]) -> int | None:
    """The loops that were asked for, where they were a count: those that a schedule or halting spent are a
    result, and its name says what was asked for."""
    return row.get("loops") if row.get("loop_schedule") == "constant" else None


def described(config: Config) -> dict[str, Any]:
    """The columns that say which configuration a row is of, and the whole of it as cfg."""
    return {
        "name": config.name,
        "seed": config.seed,
        "data": config.data.name,
        "objective": config.objective.name,
        "supervision": config.supervision.name,
        "model": config.model.name,
        "loops_train": config.loops,
        "cfg": recorded(config),
    }


# Rows travel: of a path they keep the name, not where it lay.
PATHS = (
    *("runs_dir", "out", "data.root", "metrics.weights", "metrics.images", "tokenizer.weights"),
    *("objective.file", "supervision.file"),
)


def recorded(config: Config | EncodeConfig) -> dict[str, Any]:
    """Every key of the configuration."""
    return {
        key: Path(value).name if key in PATHS and value is not None else value
        for key, value in flatten(config).items()
    }


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
    with locked(path.with_suffix(".lock")):
        rows = read_rows(path)
        known = {identity(row) for row in rows}
        added = [row for row in new if identity(row) not in known]
        if added:
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows + added)
            write_atomic(path, text)
    return len(added)


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
    with renamed(parquet) as temporary:
        table.to_parquet(temporary)
    with renamed(sheet) as temporary:
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
