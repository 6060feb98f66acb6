"""Networks and optimizer states in shards, and whole again."""

import copy

import pytest
import torch
from support.rank_runs import processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from eltlab.common import collectives, ranks
from eltlab.training.sharding import gather_state, shard_like, shard_networks, shard_optimizer_state


def test_plain_tensors_pass_through() -> None:
    state = {"a": torch.ones(2), "b": [torch.zeros(1), 3], "c": "text"}
    gathered = gather_state(state)
    assert torch.equal(gathered["a"], state["a"]) and torch.equal(gathered["b"][0], state["b"][0])
    assert gathered["b"][1] == 3 and gathered["c"] == "text"
    moment = torch.ones(2, 2)
    assert shard_like(moment, torch.nn.Parameter(torch.ones(2, 2))) is moment


def make_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.GELU(), torch.nn.Linear(4, 6))


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    network(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.integration
def test_two_ranks_hold_halves_that_gather_to_the_whole() -> None:
    def work() -> None:
        collectives.init_process_group(torch.device("cpu"))
        whole, network = make_network(), make_network()
        averages = [copy.deepcopy(network), copy.deepcopy(network)]
        shard_networks(network, averages, init_device_mesh("cpu", (2,)), bf16=False)
        for each in (network, *averages):
            for parameter in each.parameters():
                assert isinstance(parameter, DTensor)
                assert parameter.to_local().numel() * 2 == parameter.numel()
        optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1) for net in (whole, network)]
        for net, optimizer in zip((whole, network), optimizers, strict=True):
            step(net, optimizer)
        weights, moments = gather_state(network.state_dict()), gather_state(optimizers[1].state_dict())
        if ranks.is_main_process():
            for name, value in whole.state_dict().items():
                torch.testing.assert_close(weights[name], value)
        else:
            assert all(value.numel() == 0 for value in weights.values())
        # A whole state, as a checkpoint holds it, is loaded as shards: the next steps are the same.
        stored = copy.deepcopy(optimizers[0].state_dict())
        restored = shard_optimizer_state(stored, optimizers[1])
        for number, state in restored["state"].items():
            assert isinstance(state["exp_avg"], DTensor) and not isinstance(state["step"], DTensor)
            own = optimizers[1].state_dict()["state"][number]["exp_avg"]
            torch.testing.assert_close(state["exp_avg"].to_local(), own.to_local())
        assert moments["param_groups"] == optimizers[0].state_dict()["param_groups"]
        optimizers[1].load_state_dict(restored)
        for net, optimizer in zip((whole, network), optimizers, strict=True):
            step(net, optimizer)
        for one, other in zip(whole.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(other.full_tensor(), one)

    assert processes(2, work) == [0, 0]
