"""The facts that a row records: its configuration, what the model costs, the machine and the time."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.package import code_version
from eltlab.config.cost.bill import model_bill
from eltlab.config.flat import flatten
from eltlab.config.schema import Config, EncodeConfig

if TYPE_CHECKING:
    import torch

# Rows are published: they record only the last component of these paths.
PATHS = (
    *("runs_dir", "out", "data.root", "metrics.weights", "metrics.images", "tokenizer.weights"),
    *("objective.file", "supervision.file"),
)


def row_facts(
    config: Config, device: "torch.device", precision: str, timespec: str = "seconds"
) -> dict[str, Any]:
    """The columns that every row of a model has (kinds eval, tokenizer and bench).

    timespec: the resolution of the column `created`.
    """
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


def recorded_config(config: Config | EncodeConfig) -> dict[str, Any]:
    """Dotted keys to values, with paths shortened to their last component."""
    return {
        key: Path(value).name if key in PATHS and value is not None else value
        for key, value in flatten(config).items()
    }
