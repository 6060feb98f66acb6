"""Budgets that match another configuration or another run."""

import pytest
from support.budgets import FREE, half_a_step
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.common.errors import UserError
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.twins import twin
from eltlab.runs.compose_config import compose

MATCHES = {
    "twin": lambda given: twin(compose(given)),
    "{loops:1}": lambda given: compose([*given, "loops=1"]),
    "{loops:2}": lambda given: compose([*given, "loops=2"]),
    "{supervision:final}": lambda given: compose([*given, "supervision=final"]),
    "{loops:2,budget.images:800}": lambda given: compose([*given, "loops=2", "budget.images=800"]),
}


@pytest.mark.integration
@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("supervision", ["ilsd", "deep", "random_depth"])
@pytest.mark.parametrize("source", [["experiment=demo"], []], ids=["demo", "default"])
def test_a_match_costs_what_it_names(match, supervision, source):
    """The named configuration keeps the budget that it has without the match: the file's, or the default."""
    given = [*source, f"supervision={supervision}"]
    config = compose([*given, f"budget.match={match}"])
    named = MATCHES[match](given)
    assert abs(budget_flops(config) - budget_flops(named)) <= half_a_step(config)
    assert config.budget.match is None and config.budget.train_flops is None


def test_matching_the_twin_keeps_a_depth_set_by_unique_layers_and_loops():
    config = compose(["unique_layers=3", "loops=4", "budget.match=twin"])
    named = compose(["unique_layers=12", "loops=1"])
    assert abs(budget_flops(config) - budget_flops(named)) <= half_a_step(config)


def test_the_match_of_a_run_costs_what_that_run_does(tmp_path):
    fit.main([*TINY, "evaluate=false", f"runs_dir={tmp_path}"])
    [file] = tmp_path.rglob("config.yaml")
    config = compose([*FREE, "loops=1", f"budget.match={file.parent}"])
    assert compose([*FREE, "loops=1", f"budget.match={file}"]) == config
    assert abs(budget_flops(config) - budget_flops(tiny())) <= half_a_step(config)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("budget.images=-5", "budget.images=-5: must be at least 1"),
        ("budget.train_flops=0", "budget.train_flops=0.0: must be above 0"),
        ("budget.train_flops=-1e9", "budget.train_flops=-1000000000.0: must be above 0"),
        ("budget.train_flops=nan", "budget.train_flops=nan: must be a finite number"),
        ("budget.train_flops=10", "less than one step; a step of batch_size=8"),
        ("budget.images=8 budget.train_flops=1e9", "several budgets at once; give one of them"),
        ("budget.images=8 budget.match=twin", "budget.images=8 and budget.match=twin: several budgets"),
        ("budget.train_flops=1e9 budget.match=twin", "several budgets at once"),
        ("budget.match=runs/nowhere", "budget.match=runs/nowhere: no run there"),
        ("budget.match={}", "budget.match={}: no run there"),
        ("budget.match=7", "budget.match=7: no run there"),
        ("budget.match={loop:1}", "unknown key loop=1: did you mean loops?"),
        ("budget.match={loops:3}", "loops=3 does not divide"),
    ],
)
def test_mistakes_are_reported(wrong, message):
    with pytest.raises(UserError, match=message):
        compose([*FREE, *wrong.split()])


def test_a_match_with_a_broken_run_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("loops: [")
    with pytest.raises(UserError, match="is not the configuration of a run"):
        compose([*FREE, f"budget.match={tmp_path}"])


def test_a_run_without_a_name_is_named_by_what_differs_from_the_defaults():
    given = ["optim.lr=0.003"], ["model.width=96", "model.heads=6", "model.mlp_width=384"], []
    names = [compose(each).name for each in given]
    assert len(set(names)) == 3 and None not in names
    assert compose(["name=mine", "optim.lr=0.003"]).name == "mine"
