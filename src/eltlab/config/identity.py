"""The hash that names a run: everything that affects its trained weights."""

import hashlib
import json

from eltlab.config.keys import stable_dict
from eltlab.config.schema import Config

# These sections and keys define a trained model, except for PLACES: file paths and how files are read. The
# hash of what the files contain is in the checkpoint, and checked.
SECTIONS = ("model", "objective", "supervision", "data", "optim", "ema")
NUMBERS = ("loops", "unique_layers", "batch_size", "seed")
PLACES = ("file", "root", "workers", "in_memory")

# Keys of what is measured on a trained model, like loops: they are columns of a row, they are neither part
# of a run's identity nor of a protocol, and none of their values trains a model twice.
MEASURING = (
    *("sampler.guidance", "sampler.guidance_schedule", "sampler.steps", "sampler.loops", "sampler.halting"),
    *("sampler.temperature", "sampler.temperature_range", "sampler.confidence_noise", "ema.length"),
)


def defines(key: str) -> bool:
    """Whether a dotted key is part of a run's identity."""
    section, _, name = key.partition(".")
    inside = section in SECTIONS and name not in PLACES
    return (inside and key not in MEASURING) or key in (*NUMBERS, "budget.images", "trainer.precision")


def without_effect(config: Config) -> tuple[str, ...]:
    """Keys that define other models, but not this one."""
    # Every set states a codebook, which only masked models read.
    return ("data.codebook",) if config.objective.INPUTS == "images" else ()


def identity(config: Config) -> str:
    """Ten hex digits that hash what affects the trained weights (docs/architecture.md, decision 3).

    How a run is observed, sampled and measured (sampler, metrics, evaluate, checkpoints) is not part of it:
    that can change without training again, and the rows record it. Keys declared with `since` are part of
    it only if they differ from their default, so a new key does not change the ids of existing runs.
    """
    plain = stable_dict(config)
    affects = {key: plain[key] for key in SECTIONS + NUMBERS}
    for section in ("objective", "supervision", "data"):  # an extension counts by its hash, not its path
        affects[section] = {key: value for key, value in affects[section].items() if key not in PLACES}
    del affects["ema"]["length"]  # one of MEASURING
    for key in without_effect(config):
        section, _, name = key.partition(".")
        del affects[section][name]
    affects["budget"] = config.budget.images  # whatever unit the user chose
    affects["precision"] = config.trainer.precision
    text = json.dumps(affects, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
