"""The formulas for parameters, MACs and FLOPs, compared with the networks and the published counts."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import perturbed
from support.paper_rows import ROWS
from support.timed_models import model
from support.tiny_run import tiny
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eltlab.config.cost.bill import sampling_bill
from eltlab.config.cost.flops import (
    cost_per_sample,
    evaluations_per_step,
    macs_attention,
    macs_layer,
    macs_per_pass,
    macs_trunk,
    params_blocks,
    params_embedding,
    params_head,
    params_total,
    requested_depths,
    train_flops,
    train_flops_per_image,
)
from eltlab.config.network_shape import Network, network
from eltlab.config.schema import Spent
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.model.backbone import PatchBackbone, TokenBackbone, build_backbone
from eltlab.model.patches import Patches


@pytest.mark.integration
def test_what_it_counts_is_what_a_training_step_of_fit_computes():
    """FlopCounterMode over training_step and backward, with objective, supervision and loss."""
    for case in product(
        ("masked", "diffusion"), ("final", "ilsd", "deep", "random_depth"), ("true", "false")
    ):
        objective, supervision, recompute = case
        config = tiny(f"objective={objective}", f"supervision={supervision}", "model.dropout=0")
        config.trainer.recompute = recompute == "true"
        stepped = model(config)
        exits = stepped.module.supervision.exits(0)
        # On the CPU torch counts attention as zero unless it is computed as plain matrix products.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            stepped.module.training_step(next(stepped.batches), 0).backward()
        assert counter.get_total_flops() == stepped.flops(exits, config.trainer.recompute), case


@st.composite
def networks(draw):
    """A network of any shape and anatomy, and how its images are cut into patches."""
    masked = draw(st.booleans())
    block = draw(st.sampled_from(["post_norm", "pre_norm"] + ["adaln", "film"] * (not masked)))
    heads, grid = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    width = 4 * heads * draw(st.integers(1, 4))
    channels, patch = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    times, frame_patch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    net = Network(
        masked=masked,
        block=block,
        width=width,
        heads=heads,
        mlp_width=draw(st.integers(1, 60)),
        cond_width=draw(st.integers(1, 40)) if block in ("adaln", "film") else width,
        unique_layers=draw(st.integers(1, 2)),
        tokens=times * grid**2,
        patch_values=channels * patch**2 * frame_patch,
        codes=draw(st.integers(2, 50)),
        classes=draw(st.integers(1, 20)),
        loops=draw(st.integers(1, 3)),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        prelude=draw(st.integers(0, 2)),
        coda=draw(st.integers(0, 2)),
        loop_embedding=draw(st.booleans()),
        inject_input=draw(st.booleans()),
        exclusive_attention=draw(st.booleans()),
        residual_scale=draw(st.sampled_from([None, 0.5])),
        final_norm=masked and block == "pre_norm",
    )
    clip = (times * frame_patch, channels, grid * patch, grid * patch)
    return net, Patches(clip, patch, frame_patch)


def build(case):
    """The backbone on the meta device, and one input for it: shapes without numbers."""
    net, patches = case
    with torch.device("meta"):
        if net.masked:
            return TokenBackbone(net), (torch.zeros(1, net.tokens, dtype=torch.long),)
        return PatchBackbone(net, patches), (torch.zeros(1, *patches.shape), torch.zeros(1))


def counted_flops(backbone, inputs, exits, backward=False) -> int:
    """FLOPs counted by torch on the meta device (on the CPU it counts attention as zero)."""
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


def in_tiers(few: int, many: int):
    """Runs a test of random examples with few of them, and in the slow tier with many."""
    return pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])


@in_tiers(30, 200)
def test_parameters_are_those_of_the_network(examples):
    @settings(max_examples=examples)
    @given(networks())
    def check(case):
        net, (backbone, _) = case[0], build(case)
        assert params_total(net) == numel(backbone)
        assert params_blocks(net) == numel_blocks(backbone)
        assert params_head(net) == sum(
            parameter.numel() for name, parameter in backbone.named_parameters() if "head" in name
        )
        assert params_total(net) == params_blocks(net) + params_embedding(net) + params_head(net)

    check()


EXITS = st.sampled_from([(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)])


@pytest.mark.integration
@in_tiers(12, 200)
def test_macs_equal_torchs_flop_counter_on_the_meta_device(examples):
    """1 MAC = 2 FLOPs, which is what torch counts."""

    @settings(max_examples=examples)
    @given(networks(), EXITS)
    def check(case, exits):
        backbone, inputs = build(case)
        with torch.no_grad():
            counted = counted_flops(backbone, inputs, exits)
        assert counted == 2 * macs_per_pass(case[0], max(exits), len(exits))

    check()


@in_tiers(4, 200)
def test_training_flops_equal_torchs_flop_counter(examples):
    """Forward and backward: coda and head count once per exit, and what is recomputed counts again."""

    @settings(max_examples=examples)
    @given(networks(), EXITS, st.booleans())
    def check(case, exits, recompute):
        net, (backbone, inputs) = case[0], build(case)
        backbone.stack.recompute = recompute
        counted = counted_flops(backbone, inputs, exits, backward=True)
        spent = Spent({max(exits): 1.0}, len(exits))
        assert train_flops_per_image(net, spent, recompute) == counted

    check()


@given(networks(), st.integers(1, 4))
def test_trunk_and_attention_macs_equal_the_published_form(case, loops):
    """The published form, D·(12d²T + 2T²d), for an MLP of four times the width."""
    net = replace(case[0], mlp_width=4 * case[0].width)
    d, t = net.width, net.trunk_tokens
    depth = net.prelude + net.unique_layers * loops + net.coda
    assert macs_trunk(net, loops) == depth * (12 * d * d * t + 2 * t * t * d)
    assert macs_attention(net, loops) == depth * 2 * t * t * d


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
        ["objective=diffusion", "model.residual_scale=1", "model.exclusive_attention=true"],
    ],
    ids=" ".join,
)
def test_the_formulas_read_the_configuration_as_the_builder_does(overrides):
    config = tiny(*overrides)
    backbone = build_backbone(config)
    assert params_total(network(config)) == numel(backbone)
    assert params_blocks(network(config)) == numel_blocks(backbone)


@given(networks())
def test_macs_are_linear_in_the_loops_except_for_the_injection(case):
    net = case[0]
    looped = net.unique_layers * macs_layer(net)
    injection = net.inject_input * net.width**2 * net.trunk_tokens
    once = macs_per_pass(net, 1)
    assert [macs_per_pass(net, n) for n in range(2, 9)] == [
        once + injection + (n - 1) * looped for n in range(2, 9)
    ]


def test_training_flops_are_those_of_the_supervision():
    """ilsd reads two exits of every pass, deep all of them; random_depth runs its depth distribution."""
    once, anatomy = "objective=diffusion", "model.inject_input=true"
    net = network(tiny(once, anatomy))
    flops = {
        name: train_flops(tiny(once, anatomy, f"supervision={name}"))
        for name in ("final", "ilsd", "deep", "random_depth")
    }
    assert flops["final"] == train_flops_per_image(net, Spent({4: 1.0}, 1))
    assert flops["ilsd"] == train_flops_per_image(net, Spent({4: 1.0}, 2))
    assert flops["deep"] == train_flops_per_image(net, Spent({4: 1.0}, 4))
    # Not the cost of the mean count: a pass of one loop has no injection.
    assert flops["random_depth"] == pytest.approx(
        sum(train_flops_per_image(net, Spent({n: 1.0}, 1)) for n in (1, 2, 3, 4)) / 4
    )


def test_recomputing_costs_one_more_forward_of_the_trunk():
    plain, again = (
        train_flops(tiny("supervision=final", f"trainer.recompute={flag}")) for flag in ("false", "true")
    )
    assert again - plain == 2 * macs_trunk(network(tiny()), 4)


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


# --- per sample -----------------------------------------------------------------------------------


def sample_macs(config, loops):
    """MACs per sample at the requested loops."""
    spent = requested_depths(loops, config.sampler.steps)
    return cost_per_sample(config, spent, partial(macs_per_pass, network(config)))


def test_a_sample_costs_its_evaluations_at_their_loops():
    config = tiny("objective=diffusion")
    net = network(config)
    one, two, four = (macs_per_pass(net, n) for n in (1, 2, 4))
    assert sample_macs(config, 4) == 4 * four
    assert sample_macs(config, [4, 4, 2, 1]) == 2 * four + two + one
    guided = tiny("objective=diffusion", "sampler.guidance=3")
    assert sample_macs(guided, 4) == 8 * four
    assert sample_macs(guided, [4, 4, 2, 1]) == 2 * (2 * four + two + one)
    unconditional = tiny("objective=diffusion", "sampler.guidance=0")
    assert sample_macs(unconditional, 4) == 4 * four
    assert sample_macs(config, "4to1") == four + macs_per_pass(net, 3) + two + one


def test_a_sample_whose_passes_halt_costs_what_they_ran():
    """The cost is exact, even though a pass of one loop has no injection."""
    config = tiny("objective=diffusion", "model.inject_input=true")
    net = network(config)
    one, two, four = (macs_per_pass(net, n) for n in (1, 2, 4))
    spent = [{4: 1.0}, {1: 0.5, 2: 0.5}, {2: 1.0}, {1: 1.0}]
    macs = cost_per_sample(config, spent, partial(macs_per_pass, net))
    assert macs == four + (one + two) / 2 + two + one


def test_a_sample_with_falling_guidance_pays_twice_only_in_steps_that_guide():
    falling = tiny("objective=diffusion", "sampler.guidance=0", "sampler.guidance_schedule=linear")
    net = network(falling)
    # Scales 3/4, 1/2, 1/4 and 0: the last step needs only the unconditional half.
    costs = [macs_per_pass(net, n) for n in (1, 2, 3, 4)]
    assert sample_macs(falling, [1, 2, 3, 4]) == 2 * sum(costs[:3]) + costs[3]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_evaluations_and_costs_agree_with_what_a_sampler_runs(name, guidance):
    overrides = ("objective=flow", f"sampler.name={name}", f"sampler.guidance={guidance}")
    config = tiny(*overrides)
    model = AnytimeSampler(perturbed(build_backbone(config)).eval(), config, None)
    rows = []
    model.backbone.register_forward_hook(lambda _, given, done: rows.append(len(given[0])))
    done = model.sample_batch(torch.tensor([1, 2, 3, 4]), "4to1", seed=0, track=True)
    assert sum(rows) // 4 == sum(evaluations_per_step(config))
    assert done.depths == [{4: 1.0}, {3: 1.0}, {2: 1.0}, {1: 1.0}]
    assert [len(update) for update in done.updates] == [4, 3, 2, 1]
    net, doubled = network(config), 2 if guidance == 4 else 1
    passes = [4, 4, 3, 3, 2, 2, 1] if name == "heun" else [4, 3, 2, 1]
    expected = doubled * sum(macs_per_pass(net, loops) for loops in passes)
    costs = sampling_bill(config, done.depths)
    assert costs["macs_per_sample"] == expected
    assert costs["nfe"] == doubled * len(passes)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_those_of_the_built_network(name):
    _, config, ours = ROWS[name]
    with torch.device("meta"):
        backbone = build_backbone(config)
    assert sum(p.numel() for p in backbone.parameters()) == ours.params_total
    assert sum(p.numel() for p in backbone.stack.parameters()) == ours.params_blocks
