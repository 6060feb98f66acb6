"""The recipe of a data set and objective: the batch size and learning rate with the lowest held-out loss.

The study recipe trains an elastic model and its twin with every pair (sweeps/recipe.yaml).
"""

from typing import NamedTuple

import pandas as pd

from eltlab.analysis.metrics import HELD_OUT
from eltlab.analysis.points import at_trained_loops

BATCH, RATE = "cfg.batch_size", "cfg.optim.lr"
ARMS = ("elastic", "twin")
USUAL = (32, 2e-3)  # of experiment=demo, from which all recipes start


class Recipe(NamedTuple):
    """What was chosen, and what it gained over the usual pair: ratios of held-out losses, by arm."""

    batch: int
    rate: float
    loss: float  # mean over the arms
    gains: dict[str, float]  # its loss divided by that of the usual pair


def losses(rows: pd.DataFrame) -> pd.DataFrame:
    """The held-out loss at the trained loops, by batch and rate (rows) and the label of the arm (columns)."""
    own = at_trained_loops(rows)
    label = own["name"].str.rpartition("/")[2].str.partition("-")[0]
    return own.groupby([own[BATCH], own[RATE], label])[HELD_OUT].mean().unstack()


def choose_recipe(rows: pd.DataFrame) -> Recipe:
    """The pair with the lowest mean over the arms."""
    table = losses(rows)
    batch, rate = best = table.mean(axis="columns").idxmin()
    gains = table.loc[best] / table.loc[USUAL]
    return Recipe(int(batch), float(rate), float(table.loc[best].mean()), dict(gains))


def recipe_rows(studies: list[pd.DataFrame]) -> list[list[str]]:
    """One line per study of recipes, headings first."""
    lines = [
        ["data", "objective", "batch_size", "optim.lr", "held-out loss", *map("÷ usual, {}".format, ARMS)]
    ]
    for rows in studies:
        found, first = choose_recipe(rows), rows.iloc[0]
        gains = [f"{found.gains[arm]:.3f}" for arm in ARMS]
        choice = [str(found.batch), f"{found.rate:g}", f"{found.loss:.4f}"]
        lines.append([first["data"], first["objective"], *choice, *gains])
    return lines


def candidate_rows(rows: pd.DataFrame) -> list[list[str]]:
    """The held-out loss of every pair, mean over the arms, the lowest in bold: rates by batch sizes."""
    mean = losses(rows).mean(axis="columns").unstack(RATE)
    best = mean.min().min()
    lines = [["batch_size", *map("optim.lr={:g}".format, mean.columns)]]
    for batch, line in mean.iterrows():
        cells = [f"**{loss:.4f}**" if loss == best else f"{loss:.4f}" for loss in line]
        lines.append([f"{batch:g}", *cells])
    return lines
