"""The anatomy switches of the loop: each alone, all pairs, all at once. And halting."""

import copy
import math
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations

import pytest
import torch
from conftest import perturbed, tiny

from eltlab.common.package_info import package_folder
from eltlab.common.seeds import BatchNoise
from eltlab.config.network_shape import network
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone, initialise_backbone
from eltlab.model.layers import Attention, exclude_own
from eltlab.model.loop import build_stack, relative_update
from eltlab.runs.compose_config import compose

LAYERS, LOOPS = 2, 4
SWITCHES = {
    "prelude_coda": {"prelude": 1, "coda": 2},
    "loop_embedding": {"loop_embedding": True},
    "inject_input": {"inject_input": True},
    "residual_scale": {"residual_scale": True},
    "exclusive_attention": {"exclusive_attention": True},
}
ALL = tuple(SWITCHES)
TABLE = [*combinations(ALL, 1), *combinations(ALL, 2), ALL]
OBJECTIVES = ("masked", "diffusion")
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")

objectives = pytest.mark.parametrize("objective", OBJECTIVES)
blocks = pytest.mark.parametrize("block", BLOCKS)
singles = pytest.mark.parametrize("switch", ALL)
combined = pytest.mark.parametrize("on", TABLE, ids="+".join)


@cache
def configured(objective: str, on: tuple[str, ...]):
    keys = [f"model.{key}={value}" for name in on for key, value in SWITCHES[name].items()]
    return tiny(f"objective={objective}", f"unique_layers={LAYERS}", f"loops={LOOPS}", *keys)


def fresh(objective: str, on: tuple[str, ...] = ()):
    return build_backbone(configured(objective, on)).eval()


def moved(objective: str, on: tuple[str, ...] = ()):
    """A network in which every weight affects the output."""
    return perturbed(fresh(objective, on))


def batch(objective: str, size: int = 4):
    """The network's inputs and the objective's target."""
    generator = torch.Generator().manual_seed(1)
    if objective == "masked":
        x = torch.randint(16, (size, 16), generator=generator)
    else:
        x = torch.rand(size, 1, 8, 8, generator=generator) * 2 - 1
    return build_objective(configured(objective, ())).corrupt(x, BatchNoise(generator, len(x)))


def read(net, objective: str, exits=(LOOPS,), labels=(0, 1, 2, 3), **settings):
    return net(*batch(objective)[0], labels_B=torch.tensor(labels), exits=exits, **settings)


def stack_of(block: str, on=ALL, layers: int = LAYERS, loops: int = LOOPS):
    """A perturbed stack of width 16, and a state and condition to run it on."""
    switches = {key: value for name in on for key, value in SWITCHES[name].items()}
    plain = network(tiny("objective=diffusion", f"model.block={block}"))
    sizes = {"heads": 2, "mlp_width": 24, "unique_layers": layers, "loops": loops}
    stack = build_stack(replace(plain, **sizes, **switches))
    initialise_backbone(stack, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(3, 9, 16, generator=generator), torch.randn(3, 16, generator=generator)
    return perturbed(stack).eval(), x, c


def calls_of(module) -> list[int]:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# --- every combination ----------------------------------------------------------------------------


@objectives
@combined
def test_every_combination_learns(objective, on):
    """The exits of every supervision: final, ilsd, deep and random_depth."""
    net, (inputs, target) = moved(objective, on), batch(objective)
    loss = build_objective(configured(objective, on)).loss
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for exits in [(LOOPS,), (2, LOOPS), (1, 2, 3, LOOPS), (1,)]:
        before = net(*inputs, labels_B=torch.arange(4), exits=exits)
        assert list(before.exits) == list(exits) and before.loops == max(exits)
        optimizer.zero_grad()
        sum(loss(pred, target) for pred in before.exits.values()).backward()
        idle = {name for name, p in net.named_parameters() if p.grad is None}
        # One loop has nothing to inject into.
        injection = {"stack.injection.weight", "stack.injection.bias"}
        assert idle == (injection if "inject_input" in on and exits == (1,) else set())
        for name, parameter in net.named_parameters():
            if name not in idle:
                assert parameter.grad.isfinite().all() and parameter.grad.any(), name
        optimizer.step()
        after = net(*inputs, labels_B=torch.arange(4), exits=exits).exits
        assert not any(torch.equal(before.exits[n], after[n]) for n in exits)


@objectives
@combined
def test_every_combination_reads_out_what_that_many_loops_give(objective, on):
    net, exits = moved(objective, on), (1, 2, LOOPS, LOOPS + 2)
    with torch.no_grad():
        together = read(net, objective, exits).exits
        for loop in exits:
            assert torch.equal(together[loop], read(net, objective, (loop,)).exits[loop])
        other = read(net, objective, (LOOPS,), labels=(5, 1, 2, 3)).exits[LOOPS]
    assert not torch.equal(together[LOOPS], together[LOOPS + 2])
    assert (other[0] - together[LOOPS][0]).abs().max() > 1e-4
    assert torch.equal(other[1:], together[LOOPS][1:])


@objectives
@combined
def test_every_combination_differs_from_every_other(objective, on):
    """Each switch changes the output, alone and combined with each other switch."""
    net = moved(objective, on)
    got = read(net, objective).exits[LOOPS]
    for name in on:
        without = fresh(objective, tuple(other for other in on if other != name))
        without.load_state_dict(net.state_dict(), strict=False)
        assert (read(without, objective).exits[LOOPS] - got).abs().max() > 1e-4, name


@objectives
def test_the_builder_passes_every_number_on(objective):
    stack = fresh(objective, ALL).stack
    assert (len(stack.prelude), len(stack.blocks), len(stack.coda)) == (1, LAYERS, 2)
    assert stack.loop_embedding.shape == (LOOPS, 16)
    assert [layer.scale for layer in stack.blocks] == [1 / (LAYERS * math.sqrt(LOOPS))] * LAYERS


# --- off ------------------------------------------------------------------------------------------


@objectives
def test_off_is_the_plain_network(objective):
    plain = fresh(objective)
    off = {key: type(value)(0) for switch in SWITCHES.values() for key, value in switch.items()}
    config = tiny(
        f"objective={objective}",
        f"unique_layers={LAYERS}",
        f"loops={LOOPS}",
        *(f"model.{key}={value}" for key, value in off.items()),
    )
    same = build_backbone(config).eval()
    names = {name for name in same.state_dict() if name.startswith("stack.")}
    assert names and all(name.startswith("stack.blocks.") for name in names)
    for (name, weight), (other, known) in zip(
        same.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(weight, known)
    exits = {n: read(plain, objective, (n,)).exits[n] for n in (1, LOOPS)}
    assert all(torch.equal(read(same, objective, (n,)).exits[n], exits[n]) for n in exits)


def test_initial_weights_of_the_plain_network_are_drawn_in_one_fixed_order():
    """Runs that were trained before the switches existed start from these weights."""
    generator = torch.Generator().manual_seed(5)
    net = fresh("masked")
    initialise_backbone(net, torch.Generator().manual_seed(5))
    weights = dict(net.named_parameters())
    layer = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    looped = [f"stack.blocks.{n}.{name}" for n in range(LAYERS) for name in layer]
    for name in ("token", "label", "position", *looped, "head"):
        expected = torch.empty_like(weights[f"{name}.weight"])
        if name in ("token", "label", "position"):
            expected.normal_(std=0.02, generator=generator)
        else:
            torch.nn.init.xavier_uniform_(expected, generator=generator)
        assert torch.equal(weights[f"{name}.weight"], expected), name


@objectives
@pytest.mark.parametrize("switch", ["loop_embedding", "inject_input"])
def test_what_is_added_to_a_loop_starts_at_zero(objective, switch):
    plain, net = perturbed(fresh(objective)), fresh(objective, (switch,))
    own = set(net.state_dict()) - set(plain.state_dict())
    assert own and not any(net.state_dict()[name].any() for name in own)
    net.load_state_dict(plain.state_dict(), strict=False)
    for n in (1, LOOPS):
        assert torch.equal(read(net, objective, (n,)).exits[n], read(plain, objective, (n,)).exits[n])


# --- prelude, coda, embedding and injection -------------------------------------------------------


def unrolled(stack, x, c, loops: int):
    """The stack written out: prelude, loops (each first adds its embedding and the input), coda.

    Returns the output and the looped states."""

    def through(layers, x):
        for layer in layers:
            x = layer(x, layer.condition(c))
        return x

    x = first = through(stack.prelude, x)
    path = [x]
    for loop in range(loops):
        x = x + stack.loop_embedding[min(loop, LOOPS - 1)]
        if loop > 0:
            x = x + first @ stack.injection.weight.T + stack.injection.bias
        x = through(stack.blocks, x)
        path.append(x)
    return through(stack.coda, x), path


@blocks
def test_the_stack_equals_its_parts_written_out(block):
    stack, x, c = stack_of(block)
    exits = (1, 2, LOOPS, LOOPS + 2)  # beyond the trained count the last embedding is reused
    states, updates, loops = stack(x, c, exits, track=True)
    assert loops == len(updates) == LOOPS + 2
    for exit in exits:
        expected, path = unrolled(stack, x, c, exit)
        torch.testing.assert_close(states[exit], expected)
        # An update covers the looped state, including what the loop adds at its start.
        torch.testing.assert_close(updates[exit - 1], relative_update(path[-2], path[-1]))


@blocks
def test_gradients_flow_through_every_use_of_the_input(block):
    stack, x, c = stack_of(block)
    x.requires_grad_()
    wanted = (x, *stack.parameters())
    got = torch.autograd.grad(stack(x, c, (LOOPS,)).exits[LOOPS].square().sum(), wanted)
    expected = torch.autograd.grad(unrolled(stack, x, c, LOOPS)[0].square().sum(), wanted)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@blocks
def test_prelude_runs_once_per_pass_and_the_coda_once_per_exit(block):
    stack, x, c = stack_of(block)
    calls = {
        name: [calls_of(layer) for layer in getattr(stack, name)] for name in ("prelude", "blocks", "coda")
    }
    stack(x, c, (1, 3, 4))
    counts = {name: [len(made) for made in layers] for name, layers in calls.items()}
    assert counts == {"prelude": [1], "blocks": [4] * LAYERS, "coda": [3] * 2}


@pytest.mark.parametrize("block", ["adaln", "film"])
def test_conditions_of_all_layers_are_computed_once_per_pass(block):
    stack, x, c = stack_of(block)
    layers = [*stack.prelude, *stack.blocks, *stack.coda]
    calls = [calls_of(layer.modulation) for layer in layers]
    stack(x, c, (1, 2, 5))
    assert [len(made) for made in calls] == [1] * (LAYERS + 3)


def test_the_injection_is_computed_once_per_pass_and_not_for_one_loop():
    stack, x, c = stack_of("adaln")
    calls = calls_of(stack.injection)
    stack(x, c, (1,))
    assert len(calls) == 0
    stack(x, c, (2, 5))
    assert len(calls) == 1


@pytest.mark.parametrize("loop", range(1, LOOPS + 1))
def test_a_row_of_the_embedding_acts_from_its_loop_on(loop):
    stack, x, c = stack_of("pre_norm")
    exits = tuple(range(1, LOOPS + 1))
    before = stack(x, c, exits).exits
    with torch.no_grad():
        stack.loop_embedding[loop - 1] += 1
    after = stack(x, c, exits).exits
    assert [torch.equal(before[n], after[n]) for n in exits] == [n < loop for n in exits]


# --- residual scaling -----------------------------------------------------------------------------


@blocks
@pytest.mark.parametrize(("layers", "loops"), [(1, 1), (2, 4), (3, 2)])
def test_residual_branches_of_looped_layers_are_scaled(block, layers, loops):
    """By 1/(N·√L) (arXiv 2606.18524), which equals scaling the last linear layer of each branch."""
    on = ("prelude_coda", "residual_scale")
    stack, x, c = stack_of(block, on, layers, loops)
    plain, _, _ = stack_of(block, ("prelude_coda",), layers, loops)
    plain.load_state_dict(stack.state_dict())
    with torch.no_grad():
        for layer in plain.blocks:
            for parameter in (*layer.attention.proj.parameters(), *layer.mlp.down.parameters()):
                parameter.mul_(1 / (layers * math.sqrt(loops)))
    # The trained count sets the scale, whatever the pass runs.
    for ran in (1, loops, loops + 1):
        torch.testing.assert_close(stack(x, c, (ran,)).exits, plain(x, c, (ran,)).exits)


# --- exclusive attention --------------------------------------------------------------------------


@blocks
def test_exclusive_attention_is_orthogonal_to_each_tokens_own_value(block):
    stack, x, c = stack_of(block)
    kept = {}

    def keep(name, what):
        return lambda _, given, got: kept.setdefault(name, {}).update({what: (given[0], got)})

    attentions = {name: layer for name, layer in stack.named_modules() if isinstance(layer, Attention)}
    assert len(attentions) == LAYERS + 3  # prelude and coda too
    for name, layer in attentions.items():
        layer.qkv.register_forward_hook(keep(name, "qkv"))
        layer.proj.register_forward_hook(keep(name, "proj"))
    stack(x, c, (1,))
    for name in attentions:
        q, k, v = (
            part.unflatten(-1, (2, 8)).transpose(1, 2) for part in kept[name]["qkv"][1].chunk(3, dim=-1)
        )
        y = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, dim=-1) @ v
        z = kept[name]["proj"][0].unflatten(-1, (2, 8)).transpose(1, 2)
        along = (y * v).sum(-1, keepdim=True)
        assert along.abs().max() > 0.01  # there was something to remove
        assert (z * v).sum(-1).abs().max() < 1e-5
        torch.testing.assert_close(z, y - along * v / v.square().sum(-1, keepdim=True))


def test_a_value_of_zero_excludes_nothing():
    y = torch.randn(2, 2, 5, 4, requires_grad=True)
    v = torch.randn(2, 2, 5, 4)
    v[0, 1, 3] = 0
    v.requires_grad_()
    z = exclude_own(y, v)
    assert torch.equal(z[0, 1, 3], y[0, 1, 3])
    z.square().sum().backward()
    assert v.grad.isfinite().all() and y.grad.isfinite().all()


def test_exclusion_is_computed_in_float32_under_autocast():
    generator = torch.Generator().manual_seed(0)
    y, v = torch.randn(2, 1, 2, 50, 32, generator=generator).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = exclude_own(y, v)
    assert z.dtype == torch.bfloat16
    y, v = y.double(), v.double()
    expected = y - (y * v).sum(-1, keepdim=True) * v / v.square().sum(-1, keepdim=True)
    # Float32 inside: the one rounding to bf16 is at the end.
    assert (z.double() - expected).abs().max() <= 2**-8 * expected.abs().max()
    assert (z != expected.bfloat16()).float().mean() < 0.001


@objectives
def test_all_switches_run_under_autocast(objective):
    net = moved(objective, ALL)
    plain = read(net, objective).exits[LOOPS]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = read(net, objective).exits[LOOPS]
    assert (mixed.float() - plain).norm() < 0.1 * plain.norm()


# --- halting --------------------------------------------------------------------------------------


@objectives
@pytest.mark.parametrize("on", [(), ALL], ids=["plain", "all"])
def test_a_pass_halts_after_the_first_loop_whose_update_falls_below(objective, on):
    net, asked = moved(objective, on), 6
    tracked = read(net, objective, (asked,), track=True)
    updates = tracked.updates.tolist()
    for loop in range(1, asked):
        lowest = min(updates[:loop])
        # At the lowest update so far and just above it: halting requires an update strictly below.
        for halt in (lowest, math.nextafter(lowest, math.inf)):
            below = [n for n, update in enumerate(updates, start=1) if update < halt]
            expected = below[0] if below else asked
            done = read(net, objective, (asked,), halt=halt)
            assert done.loops == expected and list(done.exits) == [asked]
            assert done.updates is None
            reached = read(net, objective, (expected,)).exits[expected]
            assert torch.equal(done.exits[asked], reached)


@objectives
@pytest.mark.parametrize("on", [(), ALL], ids=["plain", "all"])
def test_a_tiny_threshold_never_halts_and_a_huge_one_halts_after_one_loop(objective, on):
    net = moved(objective, on)
    plain = read(net, objective, (5,), track=True)
    for halt, loops in ((1e-9, 5), (1e9, 1)):
        done = read(net, objective, (5,), track=True, halt=halt)
        assert done.loops == loops
        assert torch.equal(done.updates, plain.updates[:loops])
    assert torch.equal(read(net, objective, (5,), halt=1e-9).exits[5], plain.exits[5])


def test_a_pass_that_halts_early_runs_no_more_blocks_nor_reads_twice():
    stack, x, c = stack_of("adaln")
    counted = [calls_of(layer) for layer in (stack.blocks[0], stack.coda[0], stack.injection)]
    stack(x, c, (5,), halt=1e9)
    assert [len(calls) for calls in counted] == [1, 1, 0]


def test_halting_needs_a_single_exit():
    stack, x, c = stack_of("pre_norm", ())
    with pytest.raises(ValueError, match="one exit"):
        stack(x, c, (1, 2), halt=0.1)


# --- compilation and configuration ----------------------------------------------------------------


def test_all_layers_compile_and_the_graphs_do_not_grow_with_loops(graphs):
    stack, x, c = stack_of("adaln")
    plain = {loops: copy.deepcopy(stack)(x, c, (loops,)).exits[loops] for loops in (2, 6, 3)}
    stack.compile_blocks()
    for layer in (*stack.prelude, *stack.blocks, *stack.coda):
        assert layer._compiled_call_impl is not None
    seen = []
    for loops, expected in plain.items():
        torch.testing.assert_close(stack(x, c, (loops,)).exits[loops], expected)
        seen.append(len(graphs))
    assert seen[0] >= 1 and seen == [seen[0]] * 3


@singles
def test_each_switch_has_an_experiment_that_turns_it_on_and_names_its_command(switch):
    text = (package_folder("conf") / "experiment" / "anatomy" / f"{switch}.yaml").read_text()
    assert f"python -m eltlab.fit experiment=anatomy/{switch}\n" in text and "arXiv" in text
    plain, config = compose([]), compose([f"experiment=anatomy/{switch}"])
    changed = asdict(config.model).items() - asdict(plain.model).items()
    assert {key for key, _ in changed} == set(SWITCHES[switch])
    assert config.loops == plain.loops and config.model.depth == plain.model.depth
    net = build_backbone(config)
    assert len([m for m in net.modules() if isinstance(m, Attention)]) == (
        config.model.prelude + config.unique_layers + config.model.coda
    )
