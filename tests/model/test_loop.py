"""The looped stack: exits, the switches of its anatomy (each alone, all pairs, all at once) and halting."""

import copy
import math
import weakref
from functools import cache
from itertools import combinations, pairwise

import pytest
import torch
from support.backbones import LAYERS, both_backbones, make, read
from support.networks import perturbed
from support.stacks import ALL, ANATOMY_LAYERS, LOOPS, SWITCHES, blocks, stack_of
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.common.seeds import BatchNoise
from eltlab.config.identity import identity
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone, initialise_backbone
from eltlab.model.loop import LoopedStack, relative_update
from eltlab.runs.compose_config import compose

TABLE = [*combinations(ALL, 1), *combinations(ALL, 2), ALL]
OBJECTIVES = ("masked", "diffusion")
objectives = pytest.mark.parametrize("objective", OBJECTIVES)
combined = pytest.mark.parametrize("on", TABLE, ids="+".join)


@cache
def configured(objective: str, on: tuple[str, ...]):
    keys = [f"model.{key}={value}" for name in on for key, value in SWITCHES[name].items()]
    return tiny(f"objective={objective}", f"unique_layers={ANATOMY_LAYERS}", f"loops={LOOPS}", *keys)


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


def read_exits(net, objective: str, exits=(LOOPS,), labels=(0, 1, 2, 3), **settings):
    return net(*batch(objective)[0], labels_B=torch.tensor(labels), exits=exits, **settings)


def calls_of(module) -> list[int]:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# --- loops and exits ------------------------------------------------------------------------------


@both_backbones
def test_read_out_at_an_exit_equals_a_fresh_forward_of_that_many_loops(kind, block):
    net = make(kind, block)
    together = read(net, kind, exits=(1, 2, 3, 4)).exits
    assert list(together) == [1, 2, 3, 4]
    for loop, prediction in together.items():
        assert torch.equal(prediction, read(net, kind, exits=(loop,)).exits[loop])
    assert not torch.allclose(together[3], together[4])


@both_backbones
def test_loops_equal_the_unrolled_stack(kind, block):
    net = make(kind, block)
    looped = read(net, kind, exits=(3,)).exits[3]
    net.stack = LoopedStack(copy.deepcopy(layer) for _ in range(3) for layer in net.stack.blocks)
    assert torch.equal(looped, read(net, kind, exits=(1,)).exits[1])


@both_backbones
def test_teacher_and_student_share_one_forward_and_its_dropout_masks(kind, block):
    net = make(kind, block, dropout=0.5).train()
    calls = [calls_of(layer) for layer in net.stack.blocks]
    torch.manual_seed(0)
    together = read(net, kind, exits=(2, 4)).exits
    assert [len(made) for made in calls] == [4] * LAYERS
    for loop in (2, 4):
        torch.manual_seed(0)
        assert torch.equal(together[loop], read(net, kind, exits=(loop,)).exits[loop])
    # Without the seed the masks differ, so dropout is on.
    assert not torch.allclose(together[2], read(net, kind, exits=(2,)).exits[2])


@pytest.mark.parametrize("exits", [(), (0,), (2, -1)])
def test_exits_below_one_loop_are_refused(exits):
    with pytest.raises(ValueError, match="at least 1"):
        read(make("token", "post_norm"), "token", exits=exits)


@both_backbones
def test_tracked_updates_are_the_relative_change_of_each_loop(kind, block):
    net = make(kind, block)
    calls = []
    net.stack.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    done = read(net, kind, exits=(2, 4), track=True)
    start, condition = calls[0][:2]
    states, none, _ = net.stack(start, condition, (1, 2, 3, 4))
    assert none is None
    path = [start, *states.values()]
    moved = [
        ((after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean()
        for before, after in pairwise(path)
    ]
    torch.testing.assert_close(done.updates, torch.stack(moved))
    assert torch.equal(done.exits[4], read(net, kind, exits=(4,)).exits[4])


def test_gradients_of_an_exit_sum_over_its_loops():
    """Shared weights: the gradient of L loops is the sum over the copies of the unrolled stack."""
    net = make("token", "post_norm")
    read(net, "token", exits=(3,)).exits[3].square().sum().backward()
    shared = net.stack.blocks[0].mlp.up.weight.grad
    unrolled = make("token", "post_norm")
    layers = [copy.deepcopy(layer) for _ in range(3) for layer in unrolled.stack.blocks]
    unrolled.stack = LoopedStack(layers)
    read(unrolled, "token", exits=(1,)).exits[1].square().sum().backward()
    copies = sum(layer.mlp.up.weight.grad for layer in layers[::LAYERS])
    torch.testing.assert_close(shared, copies, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", ["adaln", "film"])
@pytest.mark.parametrize("loops", [1, 5])
def test_conditions_are_computed_once_per_pass(block, loops):
    net = make("patch", block)
    calls = [calls_of(layer.modulation) for layer in net.stack.blocks]
    read(net, "patch", exits=tuple(range(1, loops + 1)))
    assert [len(made) for made in calls] == [1] * LAYERS


# --- every combination ----------------------------------------------------------------------------


@objectives
@combined
def test_every_combination_learns(objective, on):
    """The exits of every supervision: final, ilsd, deep and random_depth."""
    net, (inputs, target) = moved(objective, on), batch(objective)
    losses = build_objective(configured(objective, on)).losses
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for exits in [(LOOPS,), (2, LOOPS), (1, 2, 3, LOOPS), (1,)]:
        before = net(*inputs, labels_B=torch.arange(4), exits=exits)
        assert list(before.exits) == list(exits) and before.loops == max(exits)
        optimizer.zero_grad()
        sum(losses(pred, target).mean() for pred in before.exits.values()).backward()
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
        together = read_exits(net, objective, exits).exits
        for loop in exits:
            assert torch.equal(together[loop], read_exits(net, objective, (loop,)).exits[loop])
        other = read_exits(net, objective, (LOOPS,), labels=(5, 1, 2, 3)).exits[LOOPS]
    assert not torch.equal(together[LOOPS], together[LOOPS + 2])
    assert (other[0] - together[LOOPS][0]).abs().max() > 1e-4
    assert torch.equal(other[1:], together[LOOPS][1:])


@objectives
@combined
def test_every_combination_differs_from_every_other(objective, on):
    """Each switch changes the output, alone and combined with each other switch."""
    net = moved(objective, on)
    got = read_exits(net, objective).exits[LOOPS]
    for name in on:
        without = fresh(objective, tuple(other for other in on if other != name))
        without.load_state_dict(net.state_dict(), strict=False)
        assert (read_exits(without, objective).exits[LOOPS] - got).abs().max() > 1e-4, name


@objectives
def test_the_builder_passes_every_number_on(objective):
    stack = fresh(objective, ALL).stack
    assert (len(stack.prelude), len(stack.blocks), len(stack.coda)) == (1, ANATOMY_LAYERS, 2)
    assert stack.loop_embedding.shape == (LOOPS, 16)
    assert [layer.scale for layer in stack.blocks] == [
        0.5 / (ANATOMY_LAYERS * math.sqrt(LOOPS))
    ] * ANATOMY_LAYERS


# --- off ------------------------------------------------------------------------------------------


@objectives
def test_off_is_the_plain_network(objective):
    plain = fresh(objective)
    zero = {bool: False, int: 0, float: "null"}
    off = {key: zero[type(value)] for switch in SWITCHES.values() for key, value in switch.items()}
    config = tiny(
        f"objective={objective}",
        f"unique_layers={ANATOMY_LAYERS}",
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
    exits = {n: read_exits(plain, objective, (n,)).exits[n] for n in (1, LOOPS)}
    assert all(torch.equal(read_exits(same, objective, (n,)).exits[n], exits[n]) for n in exits)


def test_initial_weights_of_the_plain_network_are_drawn_in_one_fixed_order():
    """Runs that were trained before the switches existed start from these weights."""
    generator = torch.Generator().manual_seed(5)
    net = fresh("masked")
    initialise_backbone(net, torch.Generator().manual_seed(5))
    weights = dict(net.named_parameters())
    layer = ("attention.qkv", "attention.proj", "mlp.up", "mlp.down")
    looped = [f"stack.blocks.{n}.{name}" for n in range(ANATOMY_LAYERS) for name in layer]
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
        assert torch.equal(
            read_exits(net, objective, (n,)).exits[n], read_exits(plain, objective, (n,)).exits[n]
        )


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
    leaves = (x, *stack.parameters())
    got = torch.autograd.grad(stack(x, c, (LOOPS,)).exits[LOOPS].square().sum(), leaves)
    expected = torch.autograd.grad(unrolled(stack, x, c, LOOPS)[0].square().sum(), leaves)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


@blocks
def test_prelude_runs_once_per_pass_and_the_coda_once_per_exit(block):
    stack, x, c = stack_of(block)
    calls = {
        name: [calls_of(layer) for layer in getattr(stack, name)] for name in ("prelude", "blocks", "coda")
    }
    stack(x, c, (1, 3, 4))
    counts = {name: [len(made) for made in layers] for name, layers in calls.items()}
    assert counts == {"prelude": [1], "blocks": [4] * ANATOMY_LAYERS, "coda": [3] * 2}


@pytest.mark.parametrize("block", ["adaln", "film"])
def test_conditions_of_all_layers_are_computed_once_per_pass(block):
    stack, x, c = stack_of(block)
    layers = [*stack.prelude, *stack.blocks, *stack.coda]
    calls = [calls_of(layer.modulation) for layer in layers]
    stack(x, c, (1, 2, 5))
    assert [len(made) for made in calls] == [1] * (ANATOMY_LAYERS + 3)


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


@blocks
@pytest.mark.parametrize(("layers", "loops"), [(1, 1), (2, 4), (3, 2)])
def test_residual_branches_of_looped_layers_are_scaled(block, layers, loops):
    """By λ/(N·√L), λ = 0.5 (arXiv 2606.18524), which equals scaling the last layer of each branch."""
    on = ("prelude_coda", "residual_scale")
    stack, x, c = stack_of(block, on, layers, loops)
    plain, _, _ = stack_of(block, ("prelude_coda",), layers, loops)
    plain.load_state_dict(stack.state_dict())
    with torch.no_grad():
        for layer in plain.blocks:
            for parameter in (*layer.attention.proj.parameters(), *layer.mlp.down.parameters()):
                parameter.mul_(0.5 / (layers * math.sqrt(loops)))
    # The trained count sets the scale, whatever the pass runs.
    for ran in (1, loops, loops + 1):
        torch.testing.assert_close(stack(x, c, (ran,)).exits, plain(x, c, (ran,)).exits)


@objectives
def test_all_switches_run_under_autocast(objective):
    net = moved(objective, ALL)
    plain = read_exits(net, objective).exits[LOOPS]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = read_exits(net, objective).exits[LOOPS]
    assert (mixed.float() - plain).norm() < 0.1 * plain.norm()


# --- halting --------------------------------------------------------------------------------------


@objectives
@pytest.mark.parametrize("on", [(), ALL], ids=["plain", "all"])
def test_a_pass_halts_after_the_first_loop_whose_update_falls_below(objective, on):
    net, requested = moved(objective, on), 6
    tracked = read_exits(net, objective, (requested,), track=True)
    updates = tracked.updates.tolist()
    for loop in range(1, requested):
        lowest = min(updates[:loop])
        # At the lowest update so far and just above it: halting requires an update strictly below.
        for halt in (lowest, math.nextafter(lowest, math.inf)):
            below = [n for n, update in enumerate(updates, start=1) if update < halt]
            expected = below[0] if below else requested
            done = read_exits(net, objective, (requested,), halt=halt)
            assert done.loops == expected and list(done.exits) == [requested]
            assert done.updates is None
            reached = read_exits(net, objective, (expected,)).exits[expected]
            assert torch.equal(done.exits[requested], reached)


@objectives
@pytest.mark.parametrize("on", [(), ALL], ids=["plain", "all"])
def test_a_tiny_threshold_never_halts_and_a_huge_one_halts_after_one_loop(objective, on):
    net = moved(objective, on)
    plain = read_exits(net, objective, (5,), track=True)
    for halt, loops in ((1e-9, 5), (1e9, 1)):
        done = read_exits(net, objective, (5,), track=True, halt=halt)
        assert done.loops == loops
        assert torch.equal(done.updates, plain.updates[:loops])
    assert torch.equal(read_exits(net, objective, (5,), halt=1e-9).exits[5], plain.exits[5])


def test_a_pass_that_halts_early_runs_no_more_blocks_nor_reads_twice():
    stack, x, c = stack_of("adaln")
    counted = [calls_of(layer) for layer in (stack.blocks[0], stack.coda[0], stack.injection)]
    stack(x, c, (5,), halt=1e9)
    assert [len(calls) for calls in counted] == [1, 1, 0]


def test_halting_needs_a_single_exit():
    stack, x, c = stack_of("pre_norm", ())
    with pytest.raises(ValueError, match="one exit"):
        stack(x, c, (1, 2), halt=0.1)


# --- compiled and recomputed blocks ----------------------------------------------------------------


@pytest.mark.integration
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


@pytest.mark.parametrize("block", ["post_norm", "adaln"])
def test_compiled_graphs_do_not_grow_with_the_loop_count(block, graphs):
    net = make("patch", block)
    plain = {loops: read(net, "patch", exits=(loops,)).exits[loops] for loops in (2, 6, 3)}
    net.stack.compile_blocks()
    seen = []
    for loops, expected in plain.items():
        torch.testing.assert_close(read(net, "patch", exits=(loops,)).exits[loops], expected)
        seen.append(len(graphs))
    assert seen[0] >= 1 and seen == [seen[0]] * 3


def test_recomputing_blocks_changes_nothing_but_the_cost(tmp_path):
    """The same run, to the last bit, dropout included."""
    weights = []
    for flag in ("false", "true"):
        overrides = [*TINY, "model.dropout=0.1", "objective=diffusion", "evaluate=false"]
        overrides += [f"trainer.recompute={flag}", f"runs_dir={tmp_path / flag}"]
        fit.main(overrides)
        [file] = (tmp_path / flag).rglob("last.ckpt")
        weights.append(torch.load(file, weights_only=True)["state_dict"])
        assert identity(compose(overrides)) == file.parents[1].name
    plain, again = weights
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    a, b = (tiny(f"trainer.recompute={flag}") for flag in ("false", "true"))
    assert identity(a) == identity(b)


@torch.no_grad()
def test_the_state_that_a_loop_starts_from_is_freed_after_its_first_block():
    stack, x, c = stack_of("adaln", on=("loop_embedding", "inject_input"))
    first, second = stack.blocks
    started, freed = [], []
    first.register_forward_pre_hook(lambda _, inputs: started.append(weakref.ref(inputs[0])))
    second.register_forward_pre_hook(lambda *_: freed.append(started[-1]() is None))
    stack(x, c, exits=(LOOPS,))
    assert freed == [True] * LOOPS
