"""Small stacks, the switches of their anatomy, and inputs for them."""

from dataclasses import replace

import pytest
import torch

from eltlab.config.network_shape import network
from eltlab.model.backbone import initialise_backbone
from eltlab.model.loop import build_stack
from support.networks import perturbed
from support.tiny_run import tiny

ANATOMY_LAYERS, LOOPS = 2, 4
SWITCHES = {
    "prelude_coda": {"prelude": 1, "coda": 2},
    "loop_embedding": {"loop_embedding": True},
    "inject_input": {"inject_input": True},
    "residual_scale": {"residual_scale": 0.5},
    "exclusive_attention": {"exclusive_attention": True},
}
ALL = tuple(SWITCHES)
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")
blocks = pytest.mark.parametrize("block", BLOCKS)


def stack_of(block: str, on=ALL, layers: int = ANATOMY_LAYERS, loops: int = LOOPS):
    """A perturbed stack of width 16, and a state and condition to run it on."""
    switches = {key: value for name in on for key, value in SWITCHES[name].items()}
    plain = network(tiny("objective=diffusion", f"model.block={block}"))
    sizes = {"heads": 2, "mlp_width": 24, "unique_layers": layers, "loops": loops}
    stack = build_stack(replace(plain, **sizes, **switches))
    initialise_backbone(stack, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(3, 9, 16, generator=generator), torch.randn(3, 16, generator=generator)
    return perturbed(stack).eval(), x, c
