"""What a process of a distributed run knows about itself, and which of them print."""

import sys

import pytest

from eltlab.common import ranks
from eltlab.common.errors import UserError


def launch(monkeypatch, rank: int, world: int = 4, local: int | None = 2) -> None:
    """Sets the variables that torchrun sets."""
    sizes = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": local}
    for name, value in sizes.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The seconds that would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(ranks.time, "sleep", slept.append)
    return slept


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some schedulers set it without starting processes
    assert not ranks.is_launched() and ranks.is_main_process()
    assert (ranks.rank(), ranks.world_size(), ranks.local_world_size()) == (0, 1, 1)


def test_the_variables_of_a_launcher_are_read(monkeypatch):
    launch(monkeypatch, rank=3)
    assert ranks.is_launched() and not ranks.is_main_process()
    assert (ranks.rank(), ranks.world_size(), ranks.local_world_size()) == (3, 4, 2)
    launch(monkeypatch, rank=0, local=None)
    assert ranks.is_main_process() and ranks.local_world_size() == 4


def test_only_rank_0_prints_and_errors_leave_every_rank(monkeypatch, capsys):
    for rank in (0, 1):
        launch(monkeypatch, rank)
        with pytest.raises(KeyError), ranks.silence_other_ranks():
            print(f"rank {rank}")
            print(f"error {rank}", file=sys.stderr)
            raise KeyError
    print("afterwards")
    assert capsys.readouterr() == ("rank 0\nafterwards\n", "error 0\n")


@pytest.mark.parametrize("error", [UserError("invalid"), ValueError("a bug")])
def test_errors_are_reported_in_the_order_in_which_they_explain(monkeypatch, pauses, error):
    """Rank 0's invalid input first, then rank 0's other errors, then those of the other ranks."""
    for rank in (0, 1):
        launch(monkeypatch, rank)
        ranks.wait_for_other_errors(error)
    launch(monkeypatch, rank=0, world=1)
    ranks.wait_for_other_errors(error)  # alone, nothing is waited for
    invalid = isinstance(error, UserError)
    assert pauses == ([] if invalid else [ranks.MAIN_SECONDS]) + [ranks.OTHER_RANKS_SECONDS]
    assert ranks.MAIN_SECONDS < ranks.OTHER_RANKS_SECONDS
