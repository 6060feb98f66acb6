"""Runs made before optim.warmup and ema.lengths: their configuration in today's keys, and their one average.

They are loaded, sampled, evaluated and exported like others, but not resumed: warm-up and average were not
shares of the run, so no step could continue as it began.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eltlab.common.errors import UserError

# The average was warmed up by min(decay, (1 + s)/(10 + s)). Up to the step at which that reaches the decay
# it is a power function with γ + 1 = 9, whose σ_rel this is.
WARMING_UP = 0.0905
SHORTEST = 1e-4  # ema.lengths are above 0; an old run may have kept no average (decay 0)
LONGEST_WARMUP = 0.999  # optim.warmup is below 1; some runs ended before their warm-up did


def is_old(plain: Any) -> bool:
    """Whether the tree of a config.yaml is that of an old run."""
    return "decay" in (plain.get("ema") or {}) and "warmup_images" in (plain.get("optim") or {})


def translate(plain: dict[str, Any]) -> dict[str, Any]:
    """The tree of an old run's config.yaml in today's keys."""
    model, optim = dict(plain["model"]), dict(plain["optim"])
    steps = -(-plain["budget"]["images"] // plain["batch_size"])
    warmup = optim.pop("warmup_images") / (steps * plain["batch_size"])
    # The standard deviation of an exponential average's profile is 1/(1 - decay) steps.
    length = min(WARMING_UP, 1 / (1 - plain["ema"]["decay"]) / steps)
    model["residual_scale"] = 1.0 if model.get("residual_scale") else None
    return plain | {
        "model": model | {"final_norm": False},
        "optim": optim | {"warmup": min(warmup, LONGEST_WARMUP)},
        "ema": {"lengths": [max(round(length, 4), SHORTEST)]},
    }


def has_one_average(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's state_dict is that of an old run: ema.NAME instead of ema.INDEX.NAME."""
    return not any(name.startswith("ema.0.") for name in state)


def refuse_resume(checkpoint: dict[str, Any], path: Path) -> None:
    """Raises UserError if the checkpoint is that of an old run."""
    if has_one_average(checkpoint["state_dict"]):
        raise UserError(
            f"{path}: written by eltlab {checkpoint['eltlab']['code']}, whose warm-up and average were not "
            "shares of the run, so it cannot be resumed; evaluate it as it is, resume it with that version, "
            "or start a new run under another name="
        )
