"""The collectives between two processes over gloo, and what they return in one process."""

import time

import pytest
import torch
from support.rank_runs import processes

from eltlab.common import collectives, ranks

CPU = torch.device("cpu")


def test_alone_every_collective_returns_its_own_value():
    collectives.init_process_group(CPU)
    assert not torch.distributed.is_initialized()
    assert collectives.world_size_and_rank() == (1, 0)
    collectives.barrier()
    values = torch.ones(2)
    assert collectives.all_reduce_mean(values) is values
    assert collectives.broadcast("a") == "a" and collectives.gather("a") == ["a"]


@pytest.mark.integration
def test_two_processes_exchange_their_values(tmp_path):
    def work() -> None:
        rank, marker = ranks.rank(), tmp_path / "rank 1 came"
        collectives.init_process_group(CPU)
        collectives.init_process_group(CPU)  # by each part of a run that needs it
        assert collectives.world_size_and_rank() == (2, rank)
        assert collectives.broadcast({"from": rank}) == {"from": 0}
        assert collectives.gather(10 * rank) == ([0, 10] if rank == 0 else None)
        values = torch.tensor([1.0, 4.0]) * rank
        assert collectives.all_reduce_mean(values).tolist() == [0.5, 2.0]
        assert values.tolist() == [rank, 4 * rank]  # its argument is unchanged
        if rank == 1:
            time.sleep(0.2)  # so that a barrier that does not wait is noticed
            marker.touch()
        collectives.barrier()
        assert marker.exists()

    assert processes(2, work) == [0, 0]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(collectives, "die_with_parent", lambda *_: None)
    with pytest.raises(collectives.UserError, match=r"trainer\.devices=4: torch finds 2 CUDA devices"):
        collectives.init_process_group(torch.device("cuda"))
