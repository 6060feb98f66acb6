"""Keys that were tuned for each arm: which they are, and how a caption states them."""

from support.made_up_rows import row, table

from eltlab.analysis.tuned_values import describe_edges, describe_tuned, tuned_keys, tuning_rows

ON = "held-out loss on a tenth of the training split, tuning seed 100"


def test_tuned_keys_are_those_of_any_arm() -> None:
    rows = [row("a", 4, 1.0, tuned='{"optim.lr": 0.001}'), row("b", 4, 1.0)]
    assert tuned_keys(table(rows)) == {"optim.lr"} and tuned_keys(table(rows[1:])) == set()


def test_a_caption_states_each_arms_values_and_what_they_were_chosen_on() -> None:
    """But not the losses of all candidates, which the rows have."""
    rows = [
        row(
            name, 4, 1.0, seed=seed, arm=name, tuned=f'{{"optim.lr": {rate}}}', tuned_on=f"{ON}; lr=1: {rate}"
        )
        for name, rate in (("elastic", 0.002), ("twin", 0.004))
        for seed in (0, 1)
    ]
    rows.insert(0, row("fixed", 4, 1.0, arm="fixed"))
    assert describe_tuned(table(rows)) == (
        f"tuned: elastic optim.lr=0.002, twin optim.lr=0.004 (chosen on {ON})"
    )
    assert describe_tuned(table(rows[:1])) == ""


def test_the_table_of_tuning_marks_what_each_arm_chose() -> None:
    more = f"{ON}, 0.25 of the budget; optim.lr=0.001: 0.3, optim.lr=0.002: "
    rows = [
        row("a", 4, 1.0, arm="a", tuned='{"optim.lr": 0.002}', tuned_on=more + "0.2"),
        row("b", 4, 1.0, arm="b", tuned='{"optim.lr": 0.001}', tuned_on=more + "diverged"),
        row("fixed", 4, 1.0, arm="fixed"),
    ]
    assert tuning_rows(table(rows)) == [
        ["arm", "optim.lr=0.001", "optim.lr=0.002"],
        ["a", "0.3", "**0.2**"],
        ["b", "**0.3**", "diverged"],
    ]


def test_a_choice_at_the_edge_of_its_candidates_is_named() -> None:
    losses = "optim.lr=0.001 optim.schedule=cosine: 0.3, optim.lr=0.002 optim.schedule=cosine: 0.2, "
    on = f"{ON}, 0.25 of the budget; {losses}optim.lr=0.004 optim.schedule=cosine: 0.4"
    rows = [
        row(name, 4, 1.0, arm=name, tuned=f'{{"optim.lr": {rate}, "optim.schedule": "cosine"}}', tuned_on=on)
        for name, rate in (("inside", 0.002), ("low", 0.001), ("high", 0.004))
    ]
    assert describe_edges(table(rows)) == (
        "At the edge of the candidates, so the best may lie outside: low optim.lr=0.001; high optim.lr=0.004."
    )
    assert describe_edges(table(rows[:1])) == ""
