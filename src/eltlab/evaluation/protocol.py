"""The protocol of a row: everything that must be equal for two values to be comparable (decision 6)."""

import json
from typing import Any

from eltlab.common.hashing import digest
from eltlab.config.keys import stable_dict
from eltlab.config.schema import DataConfig, SamplerConfig


def sampling_protocol(
    sampler: SamplerConfig, samples: int, precision: str, extractor: str, reference: str
) -> dict[str, Any]:
    """The protocol of an evaluation of samples.

    How many loops a pass runs (count, schedule or halting) is what studies vary, so it is excluded.
    So are keys that were added later (`since`) while they have their default.
    """
    studied = ("loops", "halting")
    fixed = {key: value for key, value in stable_dict(sampler).items() if key not in studied}
    return {
        "extractor": extractor,
        "reference": reference,
        "samples": samples,
        "labels": "balanced",
        "weights": "ema",
        "precision": precision,
        "pixels": "uint8",
        **{f"sampler.{key}": value for key, value in fixed.items()},
    }


def clips_of(data: DataConfig) -> str:
    """The clips that samples and reference consist of; the reference is from the training split."""
    split = f", split {data.split}" if data.name == "clips" else ""
    return f"{data.frames} frames, stride {data.stride}, {data.pixels} pixels{split}"


def protocol_id(protocol: dict[str, Any]) -> str:
    """Twelve hex digits; the order of the keys is irrelevant."""
    return digest(json.dumps(protocol, sort_keys=True))
