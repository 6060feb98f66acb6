"""A number has a protocol: everything that must be equal for two values to be compared (decision 6)."""

import json
from dataclasses import asdict
from typing import Any

from eltlab.common.hashing import digest
from eltlab.config.schema import DataConfig, SamplerConfig


def sampling_protocol(
    sampler: SamplerConfig, samples: int, precision: str, extractor: str, reference: str
) -> dict[str, Any]:
    """The protocol of an evaluation of drawn samples. The loops that a pass spends, by a count, a
    schedule or halting, are what is studied: not in it."""
    studied = ("loops", "halting")
    drawn = {key: value for key, value in asdict(sampler).items() if key not in studied}
    return {
        "extractor": extractor,
        "reference": reference,
        "samples": samples,
        "labels": "balanced",
        "weights": "ema",
        "precision": precision,
        "pixels": "uint8",
        **{f"sampler.{key}": value for key, value in drawn.items()},
    }


def clips_of(data: DataConfig) -> str:
    """What samples and reference are clips of; the reference is of the training split."""
    split = f", split {data.split}" if data.name == "clips" else ""
    return f"{data.frames} frames, stride {data.stride}, {data.pixels} pixels{split}"


def protocol_id(protocol: dict[str, Any]) -> str:
    return digest(json.dumps(protocol, sort_keys=True))
