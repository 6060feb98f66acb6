"""What a configuration declares about its run: its images, and the cost of its supervision."""

import pytest
from support.plans import planned
from support.tiny_run import tiny

from eltlab.training.supervision import build_supervision


def test_the_budget_is_in_whole_batches(capsys):
    assert planned(capsys, "budget.images=1000", "batch_size=128")["images"] == 1024


SPENT = {
    "final": (4, 1),
    "ilsd": (4, 2),
    "deep": (4, 4),
    "random_depth": (2.5, 1),
    "random_depth supervision.law=poisson supervision.mean=3": (3, 1),
    "random_depth supervision.min_loops=3": (3.5, 1),
}


@pytest.mark.parametrize("choice", SPENT)
def test_the_declared_cost_of_a_supervision_is_that_of_its_passes(choice):
    """The mean loops of a pass and the exits read, over many steps."""
    config = tiny(*f"supervision={choice}".split())
    depths, exits_read, distilled = config.supervision.spent(4)
    assert distilled == (choice == "ilsd")
    assert sum(depths.values()) == pytest.approx(1)
    mean = sum(loops * fraction for loops, fraction in depths.items())
    assert (mean, exits_read) == pytest.approx(SPENT[choice])
    supervision = build_supervision(config.supervision, 4, 0, 4000)
    exits = [supervision.exits(step) for step in range(4000)]
    assert sum(map(max, exits)) / 4000 == pytest.approx(SPENT[choice][0], abs=0.1)
    assert {len(set(read)) for read in exits} == {SPENT[choice][1]}
