"""Search spaces: their grids, their draws, their constraints, and what is refused."""

from random import Random

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eltlab.common.errors import UserError
from eltlab.studies.space import Dice, check_space, draw, fixed_keys, grid, holds, keys_in, keys_of

CONDITIONAL = {
    "loops": [2, 4],
    "supervision": {"final": None, "ilsd": {"supervision.min_loops": [1, 2]}},
}


def test_a_grid_is_every_combination_the_first_key_slowest():
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_a_choice_may_have_a_space_of_its_own():
    assert grid(CONDITIONAL) == [
        {"loops": loops, **rest}
        for loops in (2, 4)
        for rest in (
            {"supervision": "final"},
            {"supervision": "ilsd", "supervision.min_loops": 1},
            {"supervision": "ilsd", "supervision.min_loops": 2},
        )
    ]
    assert keys_of(CONDITIONAL) == ["loops", "supervision", "supervision.min_loops"]


def test_a_range_with_a_step_is_a_grid():
    assert grid({"n": {"low": 2, "high": 8, "step": 3}}) == [{"n": 2}, {"n": 5}, {"n": 8}]
    tenths = grid({"w": {"low": 0.1, "high": 0.3, "step": 0.1}})
    assert [cell["w"] for cell in tenths] == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="a grid requires choices or a range with a step"):
        grid({"n": {"low": 2, "high": 8}})


def test_keys_with_one_choice_in_their_branch_are_fixed():
    space = {"arm": {"short": {"loops": [1]}, "long": {"loops": [2, 4]}}, "seed": [1]}
    assert fixed_keys(space, {"arm": "short", "loops": 1, "seed": 1}) == {"loops"}
    assert fixed_keys(space, {"arm": "long", "loops": 2, "seed": 1}) == set()
    nested = {"a": {"x": {"b": {"y": {"c": [3]}}}}}
    assert fixed_keys(nested, {"a": "x", "b": "y", "c": 3}) == {"b", "c"}


@pytest.mark.parametrize("by", ["a study", "dice"])
def test_draws_are_in_the_space(by):
    space = {
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "width": {"low": 32, "high": 96, "step": 32},
        **CONDITIONAL,
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    dice = Dice(Random(0))
    drawn = [draw(space, dice if by == "dice" else study.ask()) for _ in range(60)]
    assert all(1e-4 <= cell["lr"] <= 1e-2 for cell in drawn)
    assert {cell["width"] for cell in drawn} == {32, 64, 96}
    assert {cell["loops"] for cell in drawn} == {2, 4}
    for cell in drawn:
        assert ("supervision.min_loops" in cell) == (cell["supervision"] == "ilsd")
    # Half of the draws of a logarithmic range are below its geometric middle.
    assert 18 < sum(cell["lr"] < 1e-3 for cell in drawn) < 42


def test_branches_may_have_different_spaces_for_one_key():
    """Optuna allows one distribution per name; a key with equal choices in all branches is one parameter."""
    shared = {"low": 0.0, "high": 1.0}
    space = {"a": {"x": {"n": [1, 2], "w": shared, "k": [7]}, "y": {"n": [3, 4], "w": shared}}}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [draw(space, study.ask()) for _ in range(30)]
    assert {(cell["a"], cell["n"]) for cell in drawn} == {("x", 1), ("x", 2), ("y", 3), ("y", 4)}
    assert all(("k" in cell) == (cell["a"] == "x") for cell in drawn)
    names = {name for trial in study.trials for name in trial.params}
    assert names == {"a", "n of a=x", "n of a=y", "w"}


@pytest.mark.parametrize(
    ("rule", "values", "held"),
    [
        ("loops divides model.depth", {"loops": 4, "model.depth": 8}, True),
        ("loops divides model.depth", {"loops": 3, "model.depth": 8}, False),
        ("unique_layers * loops <= 12", {"unique_layers": 4, "loops": 3}, True),
        ("unique_layers * loops <= 12", {"unique_layers": 4, "loops": 4}, False),
        ("unique_layers*loops==12", {"unique_layers": 4, "loops": 3}, True),
        ("a + 2 * b - 1 > c // 2", {"a": 1, "b": 2, "c": 8}, False),
        ("a >= b", {"a": 1, "b": 1}, True),
        ("a < b", {"a": 1, "b": 1}, False),
        ("supervision != 'ilsd'", {"supervision": "final"}, True),
    ],
)
def test_constraints(rule, values, held):
    assert holds(rule, values) is held


def test_the_keys_of_a_constraint():
    found = keys_in("unique_layers * (loops + 1) divides model.depth - 'a'")
    assert found == ["unique_layers", "loops", "model.depth"]


@given(st.integers(1, 50), st.integers(1, 50))
def test_divides_is_divides(part, whole):
    assert holds("a divides b", {"a": part, "b": whole}) == (whole % part == 0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("loops", "has no relation; choose one of divides"),
        ("loop divides depth", "did you mean loops?"),
        ("loops divides open('x')", "is not a sum or product of keys"),
        ("loops ** 2 <= 4", "is not a sum or product of keys"),
        ("loops <= (4", "is not a sum or product"),
        ("loops divides 'x'", "not all arguments converted|unsupported operand"),
        ("0 divides loops", "modulo by zero|division"),
    ],
)
def test_invalid_constraints_are_reported(rule, message):
    with pytest.raises(UserError, match=message):
        holds(rule, {"loops": 4, "depth": 8})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ([], "not a mapping of keys"),
        ({1: [2]}, "not a mapping of keys"),
        ({"a": 3}, "space.a=3: give a list of choices"),
        ({"a": []}, "give a list of choices"),
        ({"a": {}}, "space.a: no choices"),
        ({"a": [1, 1]}, "a choice is listed twice"),
        ({"a": {"low": 3, "high": 1}}, "low=3 must be a number below high=1"),
        ({"a": {"low": 0.1, "high": float("inf"), "step": 0.1}}, "low=0.1 must be a number below"),
        ({"a": {"low": float("nan"), "high": 1}}, "low=nan must be a number below high=1"),
        ({"a": {"low": 1, "high": 9, "step": float("nan")}}, "step=nan must be a number above 0"),
        ({"a": {"low": 0, "high": 1, "log": True}}, "log: true requires low above 0"),
        ({"a": {"low": 1, "high": 9, "step": 0}}, "step=0 must be a number above 0"),
        ({"a": {"x": {"b": 3}}}, "space.a.x.b=3: give a list"),
    ],
)
def test_invalid_spaces_are_reported(space, message):
    with pytest.raises(UserError, match=message):
        check_space(space, "space")
