"""Timed training steps, passes and matrix products."""

import pytest
import torch
from support.timed_models import CPU, model
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.config.cost.flops import train_flops_per_image
from eltlab.config.network_shape import network
from eltlab.config.schema import Spent
from eltlab.training.timing import PHASES, interleave, measure_matmul_rate, measure_rates


@pytest.mark.integration
@pytest.mark.parametrize(("objective", "micro_batches"), [("masked", 1), ("masked", 4), ("diffusion", 1)])
def test_its_steps_are_those_of_fit(tmp_path, objective, micro_batches):
    """Eight steps of each give the same weights, averages and moments, bit for bit."""
    overrides = [f"objective={objective}", "optim.warmup=0.1", "model.dropout=0.1"]
    overrides.append(f"trainer.accumulate={micro_batches}")
    fit.main([*TINY, *overrides, "evaluate=false", f"runs_dir={tmp_path}"])
    [file] = tmp_path.rglob("last.ckpt")
    trained = torch.load(file, weights_only=True)
    stepped = model(tiny(*overrides))
    for _ in range(8):
        assert list(stepped.step().phases) == list(PHASES)
    state = stepped.module.state_dict()
    assert state.keys() == trained["state_dict"].keys()
    assert all(torch.equal(state[key], value) for key, value in trained["state_dict"].items())
    moments = stepped.optimizer.state_dict()["state"]
    for n, values in trained["optimizer_states"][0]["state"].items():
        assert all(torch.equal(moments[n][key], value) for key, value in values.items())


def test_actions_are_interleaved_with_every_second_round_reversed():
    order: list[str] = []
    rounds: list[int] = []

    def action(name):
        return lambda: order.append(name) or (name, len(order))

    taken = interleave([action("a"), action("b")], 3, 1, rounds.append)
    assert "".join(order) == "abbaabba" and rounds == [1, 2, 3, 4]
    # The values of each action in the order of the rounds, without the warm-up.
    assert taken == [[("a", 4), ("a", 5), ("a", 8)], [("b", 3), ("b", 6), ("b", 7)]]


def test_a_step_of_random_depth_counts_its_own_flops():
    config = tiny("supervision=random_depth", "model.inject_input=true")
    stepped, net = model(config), network(config)
    for step in range(8):
        depth = max(stepped.module.supervision.exits(step))
        worth = train_flops_per_image(net, Spent({depth: 1.0}, 1)) * config.batch_size
        assert stepped.step().flops == worth
    assert max(stepped.module.supervision.exits(stepped.next_deepest_step())) == 4


def test_rates_are_flops_per_second():
    [(train, sample)] = measure_rates([tiny()], "cpu", "32-true", repeats=1)
    assert 1e5 < train < 1e15 and 1e5 < sample < 1e15
    assert 1e8 < measure_matmul_rate(CPU, "32-true") < 1e15
