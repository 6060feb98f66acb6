"""One training step's predictions, and random depth, for tests of what supervises them."""

import pytest
import torch

from eltlab.common.seeds import BatchNoise
from eltlab.config.schema import RandomDepthConfig
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone
from eltlab.training.supervision import RandomDepth
from support.networks import perturbed
from support.tiny_run import tiny

objectives = pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])


def one_step(name: str, exits=(1, 2, 3, 4)):
    """A network, its objective, the predictions of one pass and their target."""
    config = tiny(f"objective={name}")
    net, objective = perturbed(build_backbone(config)), build_objective(config)
    generator = torch.Generator().manual_seed(1)
    if name == "masked":
        x = torch.randint(16, (8, 16), generator=generator)
    else:
        x = torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1
    inputs, target = objective.corrupt(x, BatchNoise(generator, len(x)))
    preds = net(*inputs, labels_B=torch.arange(8), exits=exits).exits
    return net, objective, preds, target


def random_depth(seed: int = 0, loops: int = 8, **settings) -> RandomDepth:
    return RandomDepth(loops, RandomDepthConfig(name="random_depth", **settings), seed)
