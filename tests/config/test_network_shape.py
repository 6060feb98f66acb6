"""The shape of a network that its configuration gives is that of the network that is built."""

import pytest
import torch
from support.tiny_run import tiny

from eltlab.config.network_shape import network
from eltlab.model.backbone import build_backbone

BLOCKS = {"masked": ("post_norm", "pre_norm"), "diffusion": ("post_norm", "pre_norm", "adaln", "film")}
KINDS = [(objective, block) for objective, blocks in BLOCKS.items() for block in blocks]
kinds = pytest.mark.parametrize(("objective", "block"), KINDS)


def build(objective: str, block: str, *overrides: str):
    """The shape, and the network with its inputs for two samples."""
    anatomy = ["model.depth=9", "model.prelude=1", "model.coda=2", "loops=3", "data.codebook=12"]
    config = tiny(f"objective={objective}", f"model.block={block}", *anatomy, *overrides)
    inputs = (torch.zeros(2, config.data.tokens, dtype=torch.long),)
    if objective == "diffusion":
        inputs = (torch.zeros(2, *config.data.shape), torch.zeros(2))
    return network(config), build_backbone(config), inputs


@kinds
def test_the_trunk_runs_as_many_layers_on_as_many_tokens(objective, block):
    net, backbone, inputs = build(objective, block)
    layers = [*backbone.stack.prelude, *backbone.stack.blocks, *backbone.stack.coda]
    assert len(layers) == net.layers == 5
    seen = []
    for layer in layers:
        layer.register_forward_hook(lambda _, given, done: seen.append(given[0].shape))
    for exits in ((1,), (3,), (1, 3), (1, 2, 5)):
        seen.clear()
        backbone(*inputs, labels_B=torch.zeros(2, dtype=torch.long), exits=exits)
        assert len(seen) == net.depth_of(max(exits), len(exits))
        assert set(seen) == {(2, net.trunk_tokens, net.width)}


@kinds
def test_the_head_predicts_as_many_numbers_per_token(objective, block):
    net, backbone, inputs = build(objective, block, "data.patch=4", "data.codebook=17")
    done = backbone(*inputs, labels_B=torch.zeros(2, dtype=torch.long), exits=(1,)).exits[1]
    assert done.numel() == 2 * net.tokens * net.outputs
    assert net.outputs == (17 if objective == "masked" else 16)


@pytest.mark.parametrize("block", BLOCKS["diffusion"])
def test_modulated_blocks_are_conditioned_by_as_many_numbers(block):
    net, backbone, _ = build("diffusion", block)
    assert net.modulated == (block in ("adaln", "film")) == (net.modulation > 0)
    for layer in backbone.stack.blocks:
        assert not net.modulated or layer.modulation.out_features == net.modulation


def test_classes_and_codes_are_those_of_the_data():
    net = network(tiny("data.codebook=12", "data=fashion_mnist", "data.patch=7"))
    assert (net.codes, net.classes, net.tokens, net.patch_values) == (12, 10, 16, 49)
