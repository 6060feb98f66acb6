"""Builds the objective of a configuration."""

from eltlab.config.schema import Config, DiffusionConfig, FlowConfig, MaskedConfig
from eltlab.generation.diffusion import Diffusion
from eltlab.generation.flow import Flow
from eltlab.generation.masked import Masked
from eltlab.generation.objective import Objective


def build_objective(config: Config) -> Objective:
    """The objective of a configuration. An objective from a user's file builds itself."""
    objective = config.objective
    if objective.file is not None:
        return objective.build(config)
    match objective:
        case MaskedConfig():
            return Masked(config.data.codebook, objective.label_smoothing)
        case DiffusionConfig():
            bounds = objective.logsnr_min, objective.logsnr_max
            return Diffusion(objective.prediction, objective.bias, *bounds, objective.shift)
        case FlowConfig():
            return Flow(objective.time_mean, objective.time_std, objective.shift)
    raise AssertionError(f"no objective {objective.name}")
