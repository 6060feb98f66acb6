"""Rows: the facts that they record, and the files (JSON lines) that hold them."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.package_info import SOURCE, code_version
from eltlab.config.cost.bill import model_bill
from eltlab.config.identity import MEASURING
from eltlab.config.keys import flatten
from eltlab.config.schema import Config, EncodeConfig

if TYPE_CHECKING:
    import torch

ROWS = "rows.jsonl"  # of every run, and of an encoded set

# The columns that every evaluation must have.
REQUIRED = (*("name", "run", "seed", "data", "protocol", "protocol_text"), *("loop_schedule", "images_seen"))

# The columns of the measuring keys. `loop_schedule` has the other two, sampler.loops and sampler.halting.
SETTINGS = {
    key.removeprefix("sampler.").replace(".", "_"): key
    for key in MEASURING
    if key not in ("sampler.loops", "sampler.halting")
}

# Rows of one run that agree in these columns are the same measurement, which is written once.
MEASUREMENT = ("kind", "protocol", "loops", "loop_schedule", *SETTINGS, "images_seen", "sample_seed")

# Rows are published: they record only the last component of these paths.
PATHS = (
    *("runs_dir", "out", "data.root", "metrics.weights", "metrics.images", "metrics.statistics"),
    *("tokenizer.weights", "objective.file", "supervision.file"),
)


def row_facts(
    config: Config, device: "torch.device", precision: str, timespec: str = "seconds"
) -> dict[str, Any]:
    """The columns that all rows of a model have. timespec: the resolution of the column `created`."""
    return {
        **model_bill(config, device.type, precision),
        **machine_facts(device, timespec),
        **config_facts(config),
    }


def machine_facts(device: "torch.device", timespec: str = "seconds") -> dict[str, Any]:
    """The columns that say when, by which version and on which device something is measured."""
    # Imported here because it loads torch, which readers of rows do not need.
    from eltlab.common.torch_device import device_name

    return {
        "created": timestamp(timespec),
        "code": code_version(),
        "source": SOURCE,
        "device": device_name(device),
    }


def timestamp(timespec: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=timespec)


def config_facts(config: Config) -> dict[str, Any]:
    """The columns that describe a configuration, and the whole configuration as cfg."""
    return {
        "name": config.name,
        "seed": config.seed,
        "data": config.data.name,
        "objective": config.objective.name,
        "supervision": config.supervision.name,
        "model": config.model.name,
        "loops_train": config.loops,
        "cfg": recorded_config(config),
    }


def setting_columns(config: Config) -> dict[str, Any]:
    """The columns of SETTINGS; None if the sampler has no such key."""
    values = flatten(config)
    return {column: values.get(key) for column, key in SETTINGS.items()}


def recorded_config(config: Config | EncodeConfig) -> dict[str, Any]:
    """Dotted keys to values, with paths shortened to their last component."""
    return {
        key: Path(value).name if key in PATHS and value is not None else value
        for key, value in flatten(config).items()
    }


def measurement_key(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["kind"] == "bench":  # a timing may be repeated
        return row["kind"], row["created"]
    return tuple(requested_loops(row) if key == "loops" else row.get(key) for key in MEASUREMENT)


def requested_loops(row: dict[str, Any]) -> int | None:
    """The requested loop count, or None if a schedule or halting was requested."""
    # Otherwise the column holds the mean loops that the passes ran, which is a result.
    return row.get("loops") if row.get("loop_schedule") == "constant" else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it does not exist. Raises UserError naming a line that is not a row."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a file of rows; give a .jsonl file") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not a row (JSON); delete the line") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise UserError(f"{path}, line {number}: not a row (it has no kind); delete the line")
        missing = [key for key in REQUIRED if key not in row] if row["kind"] == "eval" else []
        if missing:
            raise UserError(
                f"{path}, line {number}: an evaluation without {', '.join(missing)}; delete the line, or "
                "add these keys"
            )
        rows.append(row)
    return rows


def append_rows(path: Path, new: Iterable[dict[str, Any]]) -> int:
    """Appends the rows whose measurements are not in the file yet; returns their number."""
    with file_lock(path.with_suffix(".lock")):
        rows = read_rows(path)
        known = {measurement_key(row) for row in rows}
        added = [row for row in new if measurement_key(row) not in known]
        if added:  # the whole file is rewritten and renamed: readers never see half a line
            text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows + added)
            write_atomic(path, text)
    return len(added)
