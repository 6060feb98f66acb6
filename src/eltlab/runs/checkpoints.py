"""Reading checkpoints safely, and checking that they fit a network."""

import pickle
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError

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
