"""Samplers of networks that were not trained."""

from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import build_backbone
from support.networks import perturbed
from support.tiny_run import tiny


def untrained(*overrides: str) -> AnytimeSampler:
    config = tiny("objective=diffusion", *overrides)
    return AnytimeSampler(perturbed(build_backbone(config)).eval(), config, None)
