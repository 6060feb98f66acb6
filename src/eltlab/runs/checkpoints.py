"""Reading checkpoints without running code in them, and checking that they fit a network."""

import pickle
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError

# The keys of a checkpoint's entry "eltlab", which training/looped_module.py writes.
COUNTERS = {
    *("step", "images_seen", "train_seconds", "skipped", "skipped_in_row", "longest_bad", "meter"),
    *("codebook", "data", "precision", "device", "code", "source", "peak_memory_bytes"),
}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run, by weights_only loading. Raises UserError."""
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no checkpoint there; train the run first (python -m eltlab.fit …)")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        problem = "truncated or not a checkpoint; delete it to train the run again"
        if isinstance(error, pickle.UnpicklingError):
            problem = "not safe to unpickle, so not loaded; use a checkpoint that eltlab wrote"
        raise UserError(f"{path}: {problem}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "eltlab"} <= checkpoint.keys():
        raise UserError(f"{path}: not an eltlab checkpoint; use one that eltlab wrote")
    # Checkpoints of older versions lack it: they are evaluated, and not resumed (training/train.py).
    checkpoint["eltlab"].setdefault("source", None)
    absent = COUNTERS - checkpoint["eltlab"].keys()
    if absent:
        version = checkpoint["eltlab"].get("code", "of an unknown version")
        raise UserError(
            f"{path}: written by eltlab {version}, without {', '.join(sorted(absent))}; use the run with "
            "that version, or delete the checkpoint to train the run again"
        )
    return checkpoint


def check_architecture(module: Any, state: dict[str, Any], path: Path, code: str | None = None) -> None:
    """Raises UserError naming the first different tensor. code: the version that wrote the file, if known."""
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    writer = f", written by eltlab {code}" if code else ""
    for key in sorted(expected.keys() | found.keys()):
        if expected.get(key) != found.get(key):
            raise UserError(
                f"{path}: a checkpoint of another architecture{writer}: {key} has shape "
                f"{found.get(key, 'none')}, this configuration has {expected.get(key, 'none')}"
            )
