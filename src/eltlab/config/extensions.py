"""Objectives and supervisions that users write: one Python file each (docs/extending.md)."""

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError
from eltlab.config.schema import (
    DiffusionSamplerConfig,
    MaskedSamplerConfig,
    ObjectiveConfig,
    SupervisionConfig,
)

BASES: dict[str, type] = {"objective": ObjectiveConfig, "supervision": SupervisionConfig}


def is_extension(group: str, value: Any) -> bool:
    """Whether a choice such as supervision=my/mean.py names a file of the user."""
    return group in BASES and isinstance(value, str) and value.endswith(".py")


def load_extension(group: str, file: str, source: str | None = None) -> type:
    """The configuration class in a file: its only class derived from the base class of the group.

    source: the hash of the file when the run was started. Raises UserError, also if the file has changed.
    """
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{group}={file}: no such file")
    if source not in (None, source_hash(path)):
        raise UserError(
            f"{group}={file}: changed since the run was started; restore the file, or start a new run"
        )
    module = _module(path, source_hash(path), group)
    base = BASES[group]
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{group}={file}: defines {len(found)} classes derived from {base.__name__}; define one, a "
            "dataclass with its keys and a method build"
        )
    kind: Any = found[0]
    if group == "objective" and kind.INPUTS not in ("images", "tokens"):
        raise UserError(f"{group}={file}: INPUTS = {kind.INPUTS!r}; choose images or tokens")
    if group == "objective" and kind.SAMPLER not in (MaskedSamplerConfig, DiffusionSamplerConfig):
        raise UserError(
            f"{group}={file}: SAMPLER = {kind.SAMPLER.__name__}; choose MaskedSamplerConfig or "
            "DiffusionSamplerConfig"
        )
    return kind


def source_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@cache
def _module(path: Path, content: str, group: str) -> Any:
    """The imported file. content: its hash, so that a changed file is imported again."""
    name = f"eltlab_{group}_{path.stem}_{content}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{group}={path}: importing it failed: {type(error).__name__}: {error}") from error
    return module
