"""The run folder: runs/<name>/<identity>, its configuration, checkpoint and lock (DESIGN decision 3)."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eltlab.compose import load_config
from eltlab.config import Config, identity, to_yaml
from eltlab.errors import UserError
from eltlab.files import locked, write_atomic
from eltlab.results import ROWS

# What a checkpoint says beside weights and optimizer (written by training/module.py).
COUNTERS = {
    "step",
    "images_seen",
    "train_seconds",
    "skipped",
    "skipped_in_row",
    "longest_bad",
    "meter",
    "codebook",
    "data",
    "precision",
    "device",
    "code",
    "peak_memory_bytes",
}


@dataclass(frozen=True)
class Run:
    folder: Path
    config: Config

    @classmethod
    def of(cls, config: Config) -> "Run":
        """The run that this configuration is; nothing is written."""
        assert config.name is not None
        return cls(Path(config.runs_dir).expanduser() / config.name / identity(config), config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run. Raises UserError where the folder is not one."""
        if not (folder / "config.yaml").is_file():
            raise UserError(
                f"run={folder}: no config.yaml there; give the folder that fit printed after 'run:'"
            )
        return cls(folder, load_config(folder / "config.yaml"))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def rows(self) -> Path:
        return self.folder / ROWS

    def write_config(self) -> None:
        write_atomic(self.folder / "config.yaml", to_yaml(self.config))

    @contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Holds the run. Where another process trains it at this moment: waits for that, or UserError."""
        with locked(self.folder / ".lock", wait) as mine:
            if not mine:
                raise UserError(f"run {self.folder}: another process is training it; wait for it")
            yield


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint by weights_only loading: no code in the file can run. Raises UserError."""
    import torch

    if not path.is_file():
        raise UserError(
            f"{path}: no checkpoint there; train the run first (python -m eltlab.fit …)"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: not safe to unpickle, so not loaded; use a checkpoint that eltlab wrote"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: truncated or not a checkpoint; delete it to train the run again"
        ) from error
    ours = isinstance(checkpoint, dict) and {"state_dict", "eltlab"} <= checkpoint.keys()
    if not ours or not checkpoint["eltlab"].keys() >= COUNTERS:
        raise UserError(
            f"{path}: of another program or another version; use a checkpoint that this eltlab wrote"
        )
    return checkpoint


def restore(module: Any, state: dict[str, Any], path: Path) -> None:
    """Loads a state dict that was read from path. Raises UserError where it does not fit."""
    check_architecture(module, state, path)
    module.load_state_dict(state)


def check_architecture(module: Any, state: dict[str, Any], path: Path) -> None:
    """UserError naming the first tensor that the file lacks, has too much or has otherwise."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"{path}: a checkpoint of another architecture: {key} has shape "
                f"{found.get(key, 'none')}, this configuration has {wanted.get(key, 'none')}"
            )
