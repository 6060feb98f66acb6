"""Which arm is the unique-layer twin of which, and why there is none."""

from typing import Any

import pytest
from support.made_up_rows import arm, table, unique

from eltlab.analysis.points import name_arms
from eltlab.analysis.twins import find_twins


def found(*rows: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """The twin of each arm, and the reason if it has none."""
    lines = find_twins(name_arms(table(rows)))
    columns = zip(lines.index, lines["twin"], lines["no_twin"], strict=True)
    return {name: (twin, reason) for name, twin, reason in columns}


def test_the_twin_has_equal_width_and_depth() -> None:
    rows = [*arm("elastic", {2: 30.0, 4: 20.0}), *unique("twin", 8, 16.0), *unique("short", 4, 40.0)]
    assert found(*rows, *unique("wide", 8, 1.0, width=128)) == {
        "elastic": ("twin", None), "twin": (None, None), "short": (None, None), "wide": (None, None),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"images_seen": 99, "train_flops_total": 9e9}, "budget"),
        ({"objective": "masked"}, "objective.name"),
        ({"data": "x"}, "data.name"),
        ({"width": 128}, "model.width"),
    ],
)
def test_an_arm_trained_differently_is_no_twin_and_the_key_is_named(other: dict, key: str) -> None:
    rows = [*arm("elastic", {4: 20.0}), *unique("twin", 8, 10.0, **other)]
    assert found(*rows)["elastic"] == (None, f"twin differs in {key}")


def keys(rate: float, **more: Any) -> dict[str, Any]:
    return {"cfg.optim.lr": rate, **{f"cfg.{key.replace('__', '.')}": value for key, value in more.items()}}


def test_the_twin_is_the_one_with_the_same_learning_rate() -> None:
    rows = [*unique("slow", 8, 9.0, **keys(1e-3)), *unique("fast", 8, 9.0, **keys(2e-3))]
    rows += [*arm("e-slow", {4: 9.0}, **keys(1e-3)), *arm("e-fast", {4: 9.0}, **keys(2e-3))]
    rows += arm("e-faster", {4: 9.0}, **keys(4e-3))
    twins = found(*rows)
    assert (twins["e-slow"][0], twins["e-fast"][0]) == ("slow", "fast")
    assert twins["e-faster"] == (None, "slow differs in optim.lr")


def test_what_follows_from_the_loops_may_differ() -> None:
    own = keys(1e-3, loops=4, unique_layers=2, seed=0, supervision__distill=1.0, budget__images=1000)
    other = keys(1e-3, loops=1, unique_layers=8, seed=1, budget__images=900, evaluate_loops=[1])
    other |= {"images_seen": 900}  # but equal FLOPs
    assert found(*arm("e", {4: 9.0}, **own), *unique("t", 8, 9.0, **other))["e"] == ("t", None)


def test_what_only_measuring_sees_may_differ() -> None:
    """Each arm is measured at its own best setting."""
    rows = [*arm("e", {4: 9.0}, **keys(1e-3, ema__length=0.05, sampler__guidance=1.0))]
    rows += unique("t", 8, 9.0, **keys(1e-3, ema__length=0.1, sampler__guidance=2.0))
    assert found(*rows)["e"] == ("t", None)


def test_keys_that_were_tuned_for_each_arm_may_differ() -> None:
    rows = [*arm("e", {4: 9.0}, tuned='{"optim.lr": 0.001}', **keys(1e-3))]
    rows += unique("t", 8, 9.0, tuned='{"optim.lr": 0.002}', **keys(2e-3))
    assert found(*rows)["e"] == ("t", None)


def test_two_possible_twins_are_no_twin() -> None:
    rows = [*arm("elastic", {4: 20.0}), *unique("t", 8, 16.0), *unique("u", 8, 17.0)]
    assert found(*rows)["elastic"] == (None, "2 twins (t, u) differ in nothing but their names")
    rows = [
        *arm("elastic", {4: 20.0}),
        *unique("t", 8, 16.0, **keys(1e-3)),
        *unique("u", 8, 17.0, **keys(2e-3)),
    ]
    assert found(*rows)["elastic"] == (None, "2 twins (t, u) differ in optim.lr")


def test_without_unique_layers_there_is_no_twin() -> None:
    assert found(*arm("e", {4: 9.0}))["e"] == (None, "no arm has unique layers")
