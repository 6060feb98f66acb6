"""Objectives and supervisions that are not eltlab's own: one Python file each (docs/extending.md)."""

import hashlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from eltlab.config import ObjectiveConfig, SupervisionConfig
from eltlab.errors import UserError

BASES: dict[str, type] = {"objective": ObjectiveConfig, "supervision": SupervisionConfig}


def is_extension(group: str, value: Any) -> bool:
    """Whether a choice such as supervision=my/mean.py names a file of the user's."""
    return group in BASES and isinstance(value, str) and value.endswith(".py")


def load_extension(group: str, file: str) -> type:
    """The configuration class of a file: its one dataclass derived from the group's. Raises UserError."""
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{group}={file}: no such file")
    module = _module(path, hashlib.sha256(path.read_bytes()).hexdigest()[:12], group)
    base = BASES[group]
    found = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UserError(
            f"{group}={file}: it defines {len(found)} classes derived from {base.__name__}; "
            "define one, a dataclass with its keys and a method build"
        )
    return found[0]


@cache
def _module(path: Path, content: str, group: str) -> Any:
    """The imported file; a changed one is imported anew."""
    name = f"eltlab_{group}_{path.stem}_{content}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(
            f"{group}={path}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    return module
