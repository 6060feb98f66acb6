"""Closed formulas against the networks themselves and against the published counts."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from eltlab.build import build_backbone
from eltlab.compose import compose
from eltlab.compute import (
    TIME_FEATURES,
    Network,
    macs_fixed,
    macs_head,
    macs_layer,
    macs_per_pass,
    macs_per_sample,
    macs_readout,
    network,
    params_blocks,
    params_total,
    train_flops_per_image,
)
from eltlab.model.backbone import Anatomy, PatchBackbone, TokenBackbone, looped_stack


@st.composite
def networks(draw):
    """A network of any shape and anatomy, and what else building it takes."""
    masked = draw(st.booleans())
    block = draw(st.sampled_from(["post_norm", "pre_norm"] + ["adaln", "film"] * (not masked)))
    heads, grid = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    width = 4 * heads * draw(st.integers(1, 4))
    channels, patch = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    net = Network(
        masked=masked,
        block=block,
        width=width,
        mlp_width=draw(st.integers(1, 60)),
        cond_width=draw(st.integers(1, 40)) if block in ("adaln", "film") else width,
        unique_layers=draw(st.integers(1, 2)),
        tokens=grid**2,
        patch_values=channels * patch**2,
        codes=draw(st.integers(2, 50)),
        classes=draw(st.integers(1, 20)),
        loops=draw(st.integers(1, 3)),
        prelude=draw(st.integers(0, 2)),
        coda=draw(st.integers(0, 2)),
        loop_embedding=draw(st.booleans()),
        inject_input=draw(st.booleans()),
    )
    free = {key: draw(st.booleans()) for key in ("residual_scale", "exclusive_attention")}
    return net, heads, grid, channels, patch, free


def build(case):
    """The backbone on the meta device, and one input of it: shapes without numbers."""
    net, heads, grid, channels, patch, free = case
    around = ("prelude", "coda", "loop_embedding", "inject_input")
    anatomy = Anatomy(**{key: getattr(net, key) for key in around}, **free)
    sizes = (net.width, heads, net.mlp_width, net.cond_width)
    with torch.device("meta"):
        stack = looped_stack(net.block, net.unique_layers, *sizes, 0.0, net.loops, anatomy)
        if net.masked:
            ids = torch.zeros(1, net.tokens, dtype=torch.long)
            sizes = (net.codes, net.classes, net.tokens, net.width, 0.0)
            return TokenBackbone(*sizes, stack), (ids,)
        size = grid * patch
        inputs = torch.zeros(1, channels, size, size), torch.zeros(1)
        sizes = (channels, size, patch, net.classes, net.width, net.cond_width)
        return PatchBackbone(*sizes, stack), inputs


def counted_flops(backbone, inputs, exits, backward=False) -> int:
    """By torch, on the meta device (on the CPU it counts attention as zero)."""
    labels = torch.zeros(1, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        done = backbone(*inputs, labels_B=labels, exits=exits)
        if backward:
            sum(pred.sum() for pred in done.exits.values()).backward()
    return counter.get_total_flops()


def numel(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def numel_blocks(backbone) -> int:
    return sum(map(numel, (backbone.stack.prelude, backbone.stack.blocks, backbone.stack.coda)))


# --- against the networks -------------------------------------------------------------------------


@settings(max_examples=80)
@given(networks())
def test_parameters_are_those_of_the_network(case):
    backbone, _ = build(case)
    assert params_total(case[0]) == numel(backbone)
    assert params_blocks(case[0]) == numel_blocks(backbone)


@settings(max_examples=50)
@given(networks(), st.integers(1, 3))
def test_macs_equal_torchs_flop_counter_on_the_meta_device(case, loops):
    """1 MAC = 2 FLOPs, which is what torch counts."""
    backbone, inputs = build(case)
    with torch.no_grad():
        counted = counted_flops(backbone, inputs, (loops,))
    assert counted == 2 * macs_per_pass(case[0], loops)


@settings(max_examples=20)
@given(networks(), st.sampled_from([(1,), (2,), (1, 2), (1, 3), (1, 2, 3)]))
def test_training_flops_equal_torchs_flop_counter(case, exits):
    """Every exit pays coda and head; torch leaves out the gradient to the inputs of the first layers."""
    net, (backbone, inputs) = case[0], build(case)
    counted = counted_flops(backbone, inputs, exits, backward=True)
    input_macs = net.tokens * net.patch_values * net.width + TIME_FEATURES * net.cond_width
    left_out = 0 if net.masked else 2 * input_macs
    assert train_flops_per_image(net, max(exits), len(exits)) == counted + left_out


@pytest.mark.parametrize(
    "overrides",
    [
        ["loops=1"],
        ["model.block=pre_norm", "data.codebook=33", "unique_layers=3", "loops=2"],
        ["objective=diffusion", "model.cond_width=20"],
        ["objective=diffusion", "model.block=film", "data.patch=4", "loops=2"],
        ["objective=diffusion", "model.block=post_norm"],
        ["model.prelude=1", "model.coda=2", "unique_layers=2", "loops=3"],
        ["objective=diffusion", "model.loop_embedding=true", "model.inject_input=true"],
        ["objective=diffusion", "model.residual_scale=true", "model.exclusive_attention=true"],
    ],
    ids=" ".join,
)
def test_the_formulas_read_the_configuration_as_the_builder_does(overrides):
    config = tiny(*overrides)
    backbone = build_backbone(config)
    assert params_total(network(config)) == numel(backbone)
    assert params_blocks(network(config)) == numel_blocks(backbone)


@given(networks())
def test_macs_are_linear_in_the_loops_but_for_the_injection(case):
    net = case[0]
    looped = net.unique_layers * macs_layer(net)
    outside = macs_fixed(net) + macs_readout(net)
    injection = net.inject_input * net.width**2 * net.trunk_tokens
    assert macs_per_pass(net, 1) == outside + looped
    assert [macs_per_pass(net, n) for n in range(2, 9)] == [
        outside + injection + n * looped for n in range(2, 9)
    ]


@given(networks(), st.lists(st.integers(1, 6), min_size=1, max_size=8))
def test_macs_of_a_mean_loop_count_are_the_mean_of_macs(case, counts):
    """Exact without injection; with it at most the injection of the passes of one loop too much."""
    net, mean = case[0], sum(counts) / len(counts)
    over = macs_per_pass(net, mean) - sum(macs_per_pass(net, n) for n in counts) / len(counts)
    injection = net.inject_input * net.width**2 * net.trunk_tokens
    rounding = 1e-9 * macs_per_pass(net, max(counts))
    assert -rounding <= over <= injection * counts.count(1) / len(counts) + rounding


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
@pytest.mark.parametrize("loops", [2, 4, 8])
def test_the_twin_has_equal_macs_and_loops_times_the_blocks(objective, loops):
    """Equal up to diffusion's modulation, which is computed once per unique layer."""
    block = "post_norm" if objective == "masked" else "pre_norm"
    common = [f"objective={objective}", f"model.block={block}", "model.depth=8"]
    looped, twin = (network(tiny(*common, f"loops={n}")) for n in (loops, 1))
    assert macs_per_pass(looped, loops) == macs_per_pass(twin, 1)
    assert params_blocks(twin) == loops * params_blocks(looped)
    assert params_total(twin) - params_total(looped) == params_blocks(twin) - params_blocks(looped)


def test_the_twin_of_a_modulated_network_pays_for_its_modulations_only():
    common = ["objective=diffusion", "model.depth=8"]
    looped, twin = (network(tiny(*common, f"loops={n}")) for n in (4, 1))
    modulation = 6 * 16 * 16
    assert macs_per_pass(twin, 1) - macs_per_pass(looped, 4) == (8 - 2) * modulation


# --- of a sample ----------------------------------------------------------------------------------


def test_a_sample_costs_its_evaluations_at_their_loops():
    config = tiny("objective=diffusion")
    net = network(config)
    one, two, four = (macs_per_pass(net, n) for n in (1, 2, 4))
    assert macs_per_sample(net, config, 4) == 4 * four
    assert macs_per_sample(net, config, [4, 4, 2, 1]) == 2 * four + two + one
    guided = tiny("objective=diffusion", "sampler.guidance=3")
    assert macs_per_sample(net, guided, 4) == 8 * four
    assert macs_per_sample(net, guided, [4, 4, 2, 1]) == 2 * (2 * four + two + one)
    unconditional = tiny("objective=diffusion", "sampler.guidance=0")
    assert macs_per_sample(net, unconditional, 4) == 4 * four
    assert macs_per_sample(net, config, "4to1") == four + macs_per_pass(net, 3) + two + one
    # Where passes halt: the mean of what ran at each step.
    assert macs_per_sample(net, config, [4.0, 1.5, 2.0, 1.0]) == four + (one + two) / 2 + two + one


def test_a_sample_with_falling_guidance_pays_twice_only_where_it_guides():
    falling = tiny("objective=diffusion", "sampler.guidance=0", "sampler.guidance_schedule=linear")
    net = network(falling)
    # Scales 3/4, 1/2, 1/4 and 0: the last step needs the unconditional half alone.
    costs = [macs_per_pass(net, n) for n in (1, 2, 3, 4)]
    assert macs_per_sample(net, falling, [1, 2, 3, 4]) == 2 * sum(costs[:3]) + costs[3]


# --- against the published counts (PAPER, What the counts mean) -----------------------------------


def imagenet(model: str, layers: int) -> Network:
    """The masked ImageNet-256 network: 256 tokens of 1024 codes, 1000 classes."""
    net = network(compose([f"model={model}", "loops=1"]))
    return replace(net, unique_layers=layers, tokens=256, codes=1024, classes=1000)


PUBLISHED = [
    ("elt_l", 24, 302.0, 305.7),
    ("elt_l", 8, 100.7, 104.2),
    ("elt_l", 12, 151.0, 154.5),
    ("elt_xl", 28, 445.9, 450.3),
    ("elt_xl", 7, 111.5, 115.5),
]


@pytest.mark.parametrize(("model", "layers", "blocks", "total"), PUBLISHED)
def test_masked_parameters_are_the_published_ones(model, layers, blocks, total):
    net = imagenet(model, layers)
    assert 12 * net.width**2 * layers / 1e6 == pytest.approx(blocks, abs=0.06)
    assert params_blocks(net) / 1e6 == pytest.approx(blocks, rel=0.01)
    assert params_total(net) / 1e6 == pytest.approx(total, rel=0.002)


@pytest.mark.parametrize(("layers", "total"), [(1, 69), (4, 271), (8, 539), (16, 1076), (32, 2150)])
def test_diffusion_parameters_are_the_published_ones(layers, total):
    """SD latents 32×32×4 at patch 1."""
    net = network(compose(["model=dit_2048", "objective=diffusion", "loops=1"]))
    net = replace(net, unique_layers=layers, tokens=1024, patch_values=4, classes=1000)
    assert params_blocks(net) / layers / 1e6 == pytest.approx(67.1, rel=0.002)
    assert params_total(net) / 1e6 == pytest.approx(total, rel=0.01)


def test_macs_are_the_published_ones():
    """ "GFLOPs" there: 3.88k of 24 guided steps on images, 361.2 a pass on video."""
    image = imagenet("elt_l", 8)
    trunk = macs_per_pass(image, 3) - macs_head(image)
    assert trunk * 48 / 1e9 == pytest.approx(3880, rel=0.002)
    video = replace(image, tokens=1024)
    trunk = macs_per_pass(video, 3) - macs_head(video)
    assert trunk / 1e9 == pytest.approx(361.2, rel=0.0005)
