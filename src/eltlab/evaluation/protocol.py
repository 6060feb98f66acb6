"""The protocol of a row: everything that must be equal for two values to be comparable (decision 6)."""

import json
from typing import Any

from eltlab.common.cache import digest
from eltlab.config.keys import stable_dict
from eltlab.config.schema import Config, DataConfig, SamplerConfig
from eltlab.data.sources import pixel_data


def evaluation_protocol(
    config: Config, precision: str, extractor: str, reference: str
) -> dict[str, Any]:
    """The protocol of a row of kind eval. extractor and reference: those of its metrics."""
    samples = config.metrics.samples
    protocol = sampling_protocol(config.sampler, samples, precision, extractor, reference)
    if config.data.frames > 1:
        protocol["clips"] = describe_clips(pixel_data(config))
    if config.objective.source is not None:  # an extension samples by its own code
        protocol["objective"] = config.objective.source
    return protocol


def sampling_protocol(
    sampler: SamplerConfig, samples: int, precision: str, extractor: str, reference: str
) -> dict[str, Any]:
    """The part that every evaluation of samples has.

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


def describe_clips(data: DataConfig) -> str:
    """The clips that samples and reference consist of; the reference is from the training split."""
    split = f", split {data.split}" if data.name == "clips" else ""
    return f"{data.frames} frames, stride {data.stride}, {data.pixels} pixels{split}"


def protocol_id(protocol: dict[str, Any]) -> str:
    """Twelve hex digits; the order of the keys is irrelevant."""
    return digest(json.dumps(protocol, sort_keys=True))
