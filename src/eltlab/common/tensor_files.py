"""Reads safetensors files."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from eltlab.common.errors import UserError


def read_tensors(path: Path, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file. Raises UserError, ending with fix, if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file; {fix}") from error
