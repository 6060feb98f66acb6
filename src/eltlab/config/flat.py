"""A configuration as dotted keys and as YAML."""

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from eltlab.config.schema import Config, EncodeConfig


def flatten(config: Config | EncodeConfig) -> dict[str, Any]:
    """Dotted keys to plain values, in order."""
    return {k: v for section, value in asdict(config).items() for k, v in leaves(section, value)}


def leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(f"{prefix}.{key}", inner)]
    return [(prefix, value)]


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, the form that `load_config` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
