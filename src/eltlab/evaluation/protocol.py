"""The protocol of a row: what all comparable values share (docs/architecture.md, decision 16)."""

import json
from typing import Any

from eltlab.common.disk_cache import digest
from eltlab.config.identity import MEASURING
from eltlab.config.keys import stable_dict
from eltlab.config.schema import Config, SamplerConfig
from eltlab.data.image_sources import pixel_data


def evaluation_protocol(config: Config, precision: str, extractor: str, reference: str) -> dict[str, Any]:
    """The protocol of a row of kind eval. extractor and reference: those of its metrics."""
    samples = config.metrics.samples
    protocol = sampling_protocol(config.sampler, samples, precision, extractor, reference)
    if config.data.tuning:
        protocol["held out"] = "a tenth of the training split"
    if config.data.frames > 1:
        data = pixel_data(config)
        split = f", split {data.split}" if data.name == "clips" else ""
        protocol["clips"] = f"{data.frames} frames, stride {data.stride}, {data.pixels} pixels{split}"
    if config.objective.source is not None:  # an extension samples by its own code
        protocol["objective"] = config.objective.source
    return protocol


def sampling_protocol(
    sampler: SamplerConfig, samples: int, precision: str, extractor: str, reference: str
) -> dict[str, Any]:
    """The part that every evaluation of samples has."""
    # Without what studies vary, the batch, which changes no sample unless passes may halt (then it is a part
    # of the column loop_schedule), and newer keys at their default.
    fixed = {f"sampler.{key}": value for key, value in stable_dict(sampler).items()}
    return {
        "extractor": extractor,
        "reference": reference,
        "samples": samples,
        "labels": "balanced",
        "weights": "ema",
        "precision": precision,
        "pixels": "uint8",
        **{key: value for key, value in fixed.items() if key not in (*MEASURING, "sampler.batch")},
    }


def protocol_id(protocol: dict[str, Any]) -> str:
    """Twelve hex digits; the order of the keys is irrelevant."""
    return digest(json.dumps(protocol, sort_keys=True))
