"""Budgets in images, in training FLOPs, or equal to another run's: resolved before the run is named."""

import pytest
import torch
from conftest import TINY, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from eltlab import fit
from eltlab.common.errors import UserError
from eltlab.config.cost.bill import bill
from eltlab.config.cost.flops import budget_flops, train_flops
from eltlab.config.cost.twins import twin
from eltlab.config.identity import identity
from eltlab.config.keys import to_yaml
from eltlab.config.parsing import typed
from eltlab.config.schema import DEFAULT_IMAGES
from eltlab.runs.compose_config import compose
from eltlab.runs.row_files import read_rows

FREE = [text for text in TINY if not text.startswith("budget.")]


def half_a_step(config) -> float:
    return train_flops(config) * config.batch_size / 2


def test_without_a_budget_a_run_has_the_default():
    assert compose([]).budget.images == DEFAULT_IMAGES


@settings(max_examples=30)
@given(st.floats(1e9, 1e13), st.sampled_from(["ilsd", "final", "deep", "random_depth"]))
def test_flops_buy_the_nearest_whole_batch(flops, supervision):
    config = compose([*FREE, f"supervision={supervision}", f"budget.train_flops={flops!r}"])
    assert abs(budget_flops(config) - flops) <= half_a_step(config) * (1 + 1e-9)
    assert config.budget.images % config.batch_size == 0


MATCHES = {
    "twin": lambda given: twin(compose(given)),
    "{loops:1}": lambda given: compose([*given, "loops=1"]),
    "{loops:2}": lambda given: compose([*given, "loops=2"]),
    "{supervision:final}": lambda given: compose([*given, "supervision=final"]),
    "{loops:2,budget.images:800}": lambda given: compose([*given, "loops=2", "budget.images=800"]),
}


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


def test_a_requested_budget_replaces_that_of_the_file():
    config = compose(["experiment=demo", "budget.train_flops=1e12"])
    assert abs(budget_flops(config) - 1e12) <= half_a_step(config)


def test_a_run_is_the_same_however_its_budget_is_given():
    flops = budget_flops(tiny())
    by_flops = compose([*FREE, f"budget.train_flops={flops!r}"])
    assert identity(by_flops) == identity(tiny()) and to_yaml(by_flops) == to_yaml(tiny())


def test_a_file_may_match_a_mapping():
    plain = OmegaConf.create(to_yaml(tiny()))
    plain.budget = {"images": None, "match": {"loops": 1}}
    assert typed(plain).budget.match == {"loops": 1}


@pytest.mark.parametrize(
    ("wrong", "said"),
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
def test_mistakes_are_reported(wrong, said):
    with pytest.raises(UserError, match=said):
        compose([*FREE, *wrong.split()])


def test_a_match_with_a_broken_run_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("loops: [")
    with pytest.raises(UserError, match="is not the configuration of a run"):
        compose([*FREE, f"budget.match={tmp_path}"])


# --- fit ------------------------------------------------------------------------------------------


def test_fit_shows_the_bill_first_and_every_row_carries_it(tmp_path, capsys):
    fit.main([*TINY, "evaluate_loops=[2,4]", f"runs_dir={tmp_path}"])
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("fit: digits-masked-elt_tiny-1x4-ilsd, seed 0")
    assert said[2].split() == ["layers", "x", "loops", *"1x4", *"4x1", *"1x1"]
    assert any(line.startswith("training FLOPs ") for line in said)
    [file] = tmp_path.rglob("rows.jsonl")
    costs, rows = bill(tiny(), "cpu", "32-true"), read_rows(file)
    own = [key for key in costs if key not in ("loops", "images", "train_flops_total", "nfe")]
    sizes = [key for key in own if not key.startswith(("macs_", "flops_"))]
    assert [row["kind"] for row in rows] == ["tokenizer", "eval", "eval"]
    for row in rows:
        assert {key: row[key] for key in sizes} == {key: costs[key] for key in sizes}
    assert {key: rows[-1][key] for key in costs if key != "images"} == {
        key: value for key, value in costs.items() if key != "images"
    }


def test_recomputing_blocks_changes_nothing_but_the_cost(tmp_path):
    """The same run, to the last bit, dropout included."""
    weights = []
    for flag in ("false", "true"):
        asked = [*TINY, "model.dropout=0.1", "objective=diffusion", "evaluate=false"]
        asked += [f"trainer.recompute={flag}", f"runs_dir={tmp_path / flag}"]
        fit.main(asked)
        [file] = (tmp_path / flag).rglob("last.ckpt")
        weights.append(torch.load(file, weights_only=True)["state_dict"])
        assert identity(compose(asked)) == file.parents[1].name
    plain, again = weights
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    a, b = (tiny(f"trainer.recompute={flag}") for flag in ("false", "true"))
    assert identity(a) == identity(b)
