"""The hash that names a run: everything that affects its trained weights."""

import hashlib
import json
from dataclasses import asdict

from eltlab.config.schema import Config, DataConfig

# What makes a model: these sections but for where things lie and how they are read, and these keys.
SECTIONS = ("model", "objective", "supervision", "data", "optim", "ema")

NUMBERS = ("loops", "unique_layers", "batch_size", "seed")

PLACES = ("file", "root", "workers", "in_memory")

FOLDERS = ("images", "clips")  # sets that are what lies in data.root

OF_IMAGES = (
    *(("kind", "pixels"), ("factor", 1), ("encoding", None)),
    *(("stride", 1), ("split", 1), ("frame_patch", 1)),
)


def defines(key: str) -> bool:
    """Whether a dotted key makes another model of a configuration; a run's identity is made of these
    (and, for data=images and clips, of where they lie)."""
    section, _, name = key.partition(".")
    inside = section in SECTIONS and name not in PLACES
    return inside or key in (*NUMBERS, "budget.images", "trainer.precision")


def whereabouts(data: "DataConfig") -> tuple[str, ...]:
    """The keys of data that make no other run: how any are read, and where known data lie."""
    return ("workers", "in_memory", *(() if data.name in FOLDERS else ("root",)))


def identity(config: Config) -> str:
    """Ten hex digits of everything that affects the trained weights (DESIGN decision 3).

    How a run is watched, drawn from and measured (sampler, metrics, evaluate, checkpoints) is left
    out: it can change without training again, and the rows say what it was.
    """
    plain = asdict(config)
    affects = {key: plain[key] for key in SECTIONS + NUMBERS}
    for key in ("objective", "supervision"):
        del affects[key]["file"]  # an extension is what it does (source), not where it lies
    for key in whereabouts(config.data):
        del affects["data"][key]
    for key, of_images in OF_IMAGES:
        if affects["data"][key] == of_images:
            del affects["data"][key]  # so that other sets gave no run on images another name
    affects["budget"] = config.budget.images  # however it was asked for
    affects["precision"] = config.trainer.precision
    text = json.dumps(affects, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
