"""The table of result rows: loaded from the run folders, and written as Parquet and CSV."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.runs.row_files import ROWS, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame

# fmt: off
COLUMNS = (
    "kind", "run", "name", "created", "code", "source", "device", "study", "trial",
    "tuned", "tuned_on", "seed", "data", "objective", "supervision", "model", "width", "depth",
    "unique_layers", "loops_train", "loops", "loop_schedule", "steps", "nfe", "guidance",
    "guidance_schedule", "temperature",
    "temperature_range", "confidence_noise", "ema_length", "images_seen", "params_total",
    "params_blocks", "macs_per_pass", "macs_per_sample", "train_flops_total", "protocol",
    "split", "samples", "sample_seed", "heldout_loss", "heldout_loss_se", "train_loss", "heldout_protocol",
    "kd_classifier", "kd_classifier_se", "fd_classifier", "fd_classifier_inf", "fd_ideal",
    "memorised", "accuracy", "fid", "fid_inf", "kid", "precision", "recall", "fvd", "fvd_inf",
    "psnr", "train_seconds", "images_per_second", "peak_memory_bytes",
)
# fmt: on


def load(*paths: str | Path) -> "DataFrame":
    """One table of all rows under these folders (rows.jsonl of every run) or in these .jsonl files.

    Columns: COLUMNS in order, other metrics, folder (of the run, as `eltlab.load` takes it), and each
    configuration key as cfg.<key>. Missing values are NaN (None for text).

    Other files of the runs in a collected file NAME.jsonl may be stored next to it, in NAME/<run>/.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for path in (Path(path).expanduser() for path in paths or ("runs",)):
        if not path.exists():
            raise UserError(f"{path}: no such folder or file of rows")
        for file in find_row_files(path) if path.is_dir() else [path]:
            for row in read_rows(file):
                cfg = {f"cfg.{key}": value for key, value in row.pop("cfg", {}).items()}
                collected = file.name != ROWS
                folder = file.with_suffix("") / row.get("run", "") if collected else file.parent
                rows.append({**row, **cfg, "folder": str(folder)})
    table = pd.DataFrame(rows)
    extra = [name for name in table.columns if name not in COLUMNS]
    order = [*COLUMNS, *sorted(extra, key=lambda name: name.startswith("cfg."))]
    return table.reindex(columns=order)


def find_row_files(folder: Path) -> list[Path]:
    """Every rows.jsonl below a folder. Links are followed, and each folder is visited once."""
    found, entered = [], set()
    for here, inner, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(here)
        if place in entered:
            inner.clear()  # os.walk then does not descend: a link to a parent would never end
            continue
        entered.add(place)
        inner.sort()  # if two links lead to one folder, the first by name is taken
        found += [Path(here, name) for name in files if name == ROWS]
    return sorted(found)


def write_table(table: "DataFrame", out: Path) -> tuple[Path, Path]:
    """Writes OUT.parquet and OUT.csv, with lists as JSON text; returns the two paths."""
    table = table.apply(_to_one_type).reset_index(drop=True)
    parquet, sheet = out.with_suffix(".parquet"), out.with_suffix(".csv")
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary)
    with atomic_path(sheet) as temporary:
        table.to_csv(temporary, index=False)
    return parquet, sheet


def _to_one_type(column: Any) -> Any:
    """The column as text if it has lists or several types, which Parquet cannot store."""
    present = column.dropna()
    if column.dtype != object or present.map(type).isin([str]).all():
        return column
    if present.map(type).isin([bool]).all():
        return column.astype("boolean")
    return column.map(
        lambda value: value if isinstance(value, str) else json.dumps(value), na_action="ignore"
    )
