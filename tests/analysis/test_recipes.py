"""Which pair of batch size and learning rate a study of recipes chooses, and what that gains."""

import pytest
from support.made_up_rows import row, table

from eltlab.analysis.points import name_arms
from eltlab.analysis.recipes import candidate_rows, choose_recipe, recipe_rows

LOSSES = {  # of the elastic arm and the twin; the elastic arm alone would choose batches of 64
    (16, 0.002): (0.36, 0.20),
    (32, 0.002): (0.40, 0.30),
    (64, 0.002): (0.34, 0.32),
}
ROWS = name_arms(
    table([
        row(
            f"recipe/{arm}-batch_size{batch}",
            loops,
            loss if loops == trained else 9.0,
            trained=trained,
            **{"cfg.batch_size": batch, "cfg.optim.lr": rate},
        )
        for (batch, rate), pair in LOSSES.items()
        for arm, loss, trained in zip(("elastic", "twin"), pair, (4, 1), strict=True)
        for loops in {1, trained}
    ])
)  # fmt: skip


def test_of_pairs_that_are_close_the_largest_batch_is_chosen() -> None:
    """It trains the same images in fewer steps."""
    near = ROWS["cfg.batch_size"].eq(32) & ROWS["loops"].eq(ROWS["loops_train"])
    for loss, batch in ((0.2805, 32), (0.29, 16)):
        rows = ROWS.assign(heldout_loss=ROWS["heldout_loss"].mask(near, loss))
        assert choose_recipe(rows).batch == batch


def test_the_pair_with_the_lowest_mean_over_the_arms_is_chosen() -> None:
    found = choose_recipe(ROWS)
    assert (found.batch, found.rate) == (16, 0.002) and found.loss == pytest.approx(0.28)
    assert found.gains == pytest.approx({"elastic": 0.9, "twin": 2 / 3})
    line = recipe_rows({"recipe_digits_masked": ROWS})[1]
    which = ["none", "diffusion", "`recipe/digits_masked`"]
    assert line == [*which, "16", "0.002", "0.2800", "0.900", "0.667"]
    assert candidate_rows(ROWS) == [
        ["batch_size", "optim.lr=0.002"],
        ["16", "**0.2800**"],
        ["32", "0.3500"],
        ["64", "0.3300"],
    ]
