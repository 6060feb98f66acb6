"""The twins of equal compute and of equal size."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import cell, lines, planned
from support.tiny_run import tiny

from eltlab.config.cost.flops import macs_trunk, params_blocks
from eltlab.config.cost.twins import TOLERANCE, count_params, iso_params, twin
from eltlab.config.network_shape import network
from eltlab.model.backbone import build_backbone
from eltlab.runs.compose_config import compose


def test_a_unique_layer_model_is_its_own_twin(capsys):
    assert cell(lines(capsys, "loops=1"), "blocks") == ["399.9k"]
    costs = planned(capsys, "loops=1")
    own = {key: costs[key] for key in costs["twin"]}
    assert costs["twin"] == costs["iso_params"] == own


ANATOMY = st.fixed_dictionaries(
    {
        "model.prelude": st.integers(0, 2),
        "model.coda": st.integers(0, 2),
        "model.loop_embedding": st.sampled_from(["true", "false"]),
        "model.inject_input": st.sampled_from(["true", "false"]),
        "unique_layers": st.integers(1, 4),
        "loops": st.integers(2, 8),
        "objective": st.sampled_from(["masked", "diffusion"]),
    }
)


@settings(max_examples=30)
@given(ANATOMY)
def test_twins_match_what_they_are_named_for(keys):
    config = compose([f"{key}={value}" for key, value in keys.items()])
    net, other, equal = network(config), twin(config), iso_params(config)
    assert other.loops == equal.loops == 1
    assert other.supervision.name == equal.supervision.name == "final"
    assert macs_trunk(network(other), 1) == macs_trunk(net, config.loops)
    per_layer = params_blocks(net) // net.layers
    more = config.unique_layers * (config.loops - 1)
    assert params_blocks(network(other)) == params_blocks(net) + more * per_layer
    assert abs(count_params(equal) / count_params(config) - 1) <= TOLERANCE
    assert macs_trunk(network(equal), 1) < macs_trunk(net, config.loops)
    # They are configurations that fit can train unchanged.
    for arm in (other, equal):
        assert sum(p.numel() for p in meta(arm).parameters()) == count_params(arm)


def meta(config):
    with torch.device("meta"):
        return build_backbone(config)


def test_fewer_layers_match_if_they_can():
    config = tiny("unique_layers=2", "loops=4")
    assert (iso_params(config).unique_layers, iso_params(config).model.width) == (2, 16)
    assert count_params(iso_params(config)) == count_params(config)


def test_a_width_that_cannot_be_narrowed_keeps_its_layers():
    narrow = ["model.width=6", "model.heads=3", "model.mlp_width=12", "model.inject_input=true"]
    assert iso_params(compose(narrow)).loops == 1
    assert iso_params(compose([*narrow, "model.heads=6"])).model.width in (6,)


def test_layers_are_narrowed_to_match_an_injection():
    config = compose(["model.inject_input=true", "unique_layers=1", "loops=8"])
    equal = iso_params(config)
    assert equal.unique_layers == 2 and equal.model.width < 64
    assert not equal.model.inject_input
