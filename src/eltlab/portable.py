"""A model to hand on: one safetensors file that holds weights, codebook and configuration."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eltlab.compose import parse_config
from eltlab.config import Config, to_yaml
from eltlab.errors import UserError
from eltlab.files import renamed

CODEBOOK = "codebook"  # the one tensor that is not the backbone's


def write(
    path: Path,
    config: Config,
    weights: dict[str, Tensor],
    codes: Tensor | None,
    counters: dict[str, Any],
) -> None:
    """The averaged weights under the backbone's names, CODEBOOK where the model has one; in the
    metadata the configuration as YAML, the images seen and the code that trained it."""
    tensors = weights if codes is None else {**weights, CODEBOOK: codes}
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    metadata = {
        "format": "pt",
        "eltlab.config": to_yaml(config),
        "eltlab.images_seen": str(counters["images_seen"]),
        "eltlab.code": counters["code"],
    }
    with renamed(path) as temporary:
        save_file(tensors, temporary, metadata)


def read(path: Path) -> tuple[Config, dict[str, Tensor]]:
    """The configuration and the tensors that `write` wrote. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder or a file that export wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file; export the run again"
        ) from error
    if "eltlab.config" not in metadata:
        raise UserError(f"{path}: of another program; give a file that eltlab.export wrote")
    return parse_config(metadata["eltlab.config"], path), tensors
