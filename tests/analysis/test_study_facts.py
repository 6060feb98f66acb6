"""What pages say of a study's training, measuring and cost is that of its rows."""

from support.made_up_rows import arm, table, unique

from eltlab.analysis.study_facts import describe_cost, describe_protocol

KEYS = {"cfg.seed": 0, "cfg.optim.lr": 0.1, "cfg.sampler.steps": 8, "code": "0.1.0-aaaa", "device": "CPU"}
ROWS = [
    *arm("e", {1: 0.3, 4: 0.2}, train_seconds=1800.0, **KEYS, **{"cfg.loops": 4}),
    *unique("u", 8, 0.1, train_seconds=1800.0, seed=1, **{**KEYS, "cfg.seed": 1}, **{"cfg.loops": 1.0}),
]


def test_the_protocol_names_the_keys_in_which_the_arms_differ() -> None:
    trained, differ, measured, code = describe_protocol(table(ROWS)).splitlines()
    assert "none, diffusion, width 64, 8 layers per pass; 1,000 images and 1T training FLOPs" in trained
    assert trained.endswith("seeds 0, 1.")
    assert differ == "- The arms differ in loops; all other keys that define a run are equal."
    assert measured == "- Measured: samples 500; protocol aaaa." and code == "- Code: 0.1.0-aaaa."


def test_what_differs_although_it_should_not_is_named() -> None:
    rows = [*ROWS, *arm("f", {4: 0.2}, **{**KEYS, "cfg.optim.lr": 0.2, "cfg.sampler.steps": 9})]
    assert "differ in optim.lr, loops;" in describe_protocol(table(rows))


def test_the_cost_counts_each_training_once() -> None:
    assert describe_cost(table(ROWS)) == (
        "2 trainings (2 arms, 2 seeds), 2T training FLOPs, 60 min of training on CPU"
    )


def test_the_cost_of_tuning_is_counted_from_its_candidates() -> None:
    on = "tuning seeds 100, 101, 0.25 of the budget; optim.lr=0.001: 0.3, optim.lr=0.002: 0.2"
    rows = table(ROWS).assign(arm="one", tuned='{"optim.lr": 0.002}', tuned_on=f"held-out loss, {on}")
    assert describe_cost(rows).endswith("on CPU; before them 4 trainings of tuning, 1T FLOPs")


def test_the_code_that_measured_is_named_if_it_is_another_one() -> None:
    rows = table(ROWS).assign(evaluated_code="0.1.0-bbbb")
    assert "- Code: 0.1.0-aaaa; measured by 0.1.0-bbbb." in describe_protocol(rows)
