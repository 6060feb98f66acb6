"""Builds the network of a configuration."""

import torch
from torch import nn

from eltlab.common.seeds import generator
from eltlab.config.schema import Config, DataConfig
from eltlab.model.backbone import (
    Anatomy,
    PatchBackbone,
    TokenBackbone,
    initialise_backbone,
    looped_stack,
)
from eltlab.model.patches import Patches


def build_backbone(config: Config) -> nn.Module:
    """The network of a configuration, its initial weights a function of the seed."""
    model, data = config.model, config.data
    assert model.block and model.cond_width and config.unique_layers
    assert model.dropout is not None
    with torch.random.fork_rng(devices=[]):  # modules draw weights that are drawn anew below
        stack = looped_stack(
            model.block,
            config.unique_layers,
            model.width,
            model.heads,
            model.mlp_width,
            model.cond_width,
            model.dropout,
            config.loops,
            Anatomy(
                model.prelude,
                model.coda,
                model.loop_embedding,
                model.inject_input,
                model.residual_scale,
                model.exclusive_attention,
            ),
        )
        backbone: nn.Module
        if config.objective.INPUTS == "tokens":
            backbone = TokenBackbone(
                data.codebook, data.classes, data.tokens, model.width, model.dropout, stack
            )
        else:
            backbone = PatchBackbone(
                patches_of(data), data.classes, model.width, model.cond_width, stack
            )
    initialise_backbone(backbone, generator(config.seed, "weights"))
    return backbone


def patches_of(data: DataConfig) -> Patches:
    """How the backbone, or a codebook over pixels, cuts what the data are."""
    return Patches(data.shape, data.patch, data.frame_patch)
