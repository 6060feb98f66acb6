"""Builds the network of a configuration."""

import torch
from torch import nn

from eltlab.common.seeds import generator
from eltlab.config.network import network
from eltlab.config.schema import Config, DataConfig
from eltlab.model.backbone import PatchBackbone, TokenBackbone, initialise_backbone
from eltlab.model.patches import Patches


def build_backbone(config: Config) -> nn.Module:
    """The network of a configuration. Its initial weights are a function of the seed."""
    net = network(config)
    # torch initialises each module as it is built. Those draws are overwritten below, and must not
    # advance the global generator.
    with torch.random.fork_rng(devices=[]):
        backbone = TokenBackbone(net) if net.masked else PatchBackbone(net, patches_of(config.data))
    initialise_backbone(backbone, generator(config.seed, "weights"))
    return backbone


def patches_of(data: DataConfig) -> Patches:
    """How a backbone, or a codebook over pixels, cuts the samples of this data set."""
    return Patches(data.shape, data.patch, data.frame_patch)
