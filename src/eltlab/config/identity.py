"""The hash that names a run: everything that affects its trained weights."""

import hashlib
import json

from eltlab.config.keys import stable_dict
from eltlab.config.schema import Config, DataConfig

# These sections and keys define a trained model, except for PLACES: file paths and how files are read.
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
    """Whether a dotted key is part of a run's identity.

    data.root counts only for some sets; see `place_keys`.
    """
    section, _, name = key.partition(".")
    inside = section in SECTIONS and name not in PLACES
    return (inside and key not in MEASURING) or key in (*NUMBERS, "budget.images", "trainer.precision")


def place_keys(data: DataConfig) -> tuple[str, ...]:
    """The keys of data outside a run's identity: how files are read, and where known sets are stored."""
    # data=images and data=clips are defined by what data.root contains.
    return ("workers", "in_memory", *(() if data.name in ("images", "clips") else ("root",)))


def identity(config: Config) -> str:
    """Ten hex digits that hash what affects the trained weights (docs/architecture.md, decision 3).

    How a run is observed, sampled and measured (sampler, metrics, evaluate, checkpoints) is not part of it:
    that can change without training again, and the rows record it. Keys declared with `since` are part of
    it only if they differ from their default, so a new key does not change the ids of existing runs.
    """
    plain = stable_dict(config)
    affects = {key: plain[key] for key in SECTIONS + NUMBERS}
    for key in ("objective", "supervision"):
        del affects[key]["file"]  # an extension counts by its hash (source), not its path
    for key in place_keys(config.data):
        del affects["data"][key]
    affects["budget"] = config.budget.images  # whatever unit the user chose
    affects["precision"] = config.trainer.precision
    text = json.dumps(affects, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
