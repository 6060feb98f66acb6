"""The configuration. What a file of your own needs (docs/extending.md) is importable from here."""

from eltlab.config.schema import (
    Config,
    DeepConfig,
    DiffusionConfig,
    DiffusionSamplerConfig,
    FinalConfig,
    FlowConfig,
    FlowSamplerConfig,
    IlsdConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    ObjectiveConfig,
    RandomDepthConfig,
    SamplerConfig,
    Spent,
    SupervisionConfig,
)

__all__ = [
    "Config",
    "DeepConfig",
    "DiffusionConfig",
    "DiffusionSamplerConfig",
    "FinalConfig",
    "FlowConfig",
    "FlowSamplerConfig",
    "IlsdConfig",
    "MaskedConfig",
    "MaskedSamplerConfig",
    "ObjectiveConfig",
    "RandomDepthConfig",
    "SamplerConfig",
    "Spent",
    "SupervisionConfig",
]
