"""The recipe of a data set and objective: its batch size and learning rate.

The study recipe trains an elastic model and its twin with every pair (sweeps/recipe.yaml).
"""

from typing import NamedTuple

import pandas as pd

from eltlab.analysis.metrics import HELD_OUT
from eltlab.analysis.points import at_trained_loops

BATCH, RATE = "cfg.batch_size", "cfg.optim.lr"
ARMS = ("elastic", "twin")
CLOSE = 1.01  # losses within this ratio count as equal: one seed does not order them
USUAL = (32, 2e-3)  # what experiment=demo had before it had a recipe


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
    """Of the pairs whose mean over the arms is close to the lowest, the best one of the largest batch: fewer
    steps train faster."""
    table = losses(rows)
    means = table.mean(axis="columns")
    close = means[means <= CLOSE * means.min()]
    largest = close.index.get_level_values(BATCH).max()
    batch, rate = best = close.xs(largest, level=BATCH, drop_level=False).idxmin()
    gains = table.loc[best] / table.loc[USUAL]
    return Recipe(int(batch), float(rate), float(table.loc[best].mean()), dict(gains))


def recipe_experiment(name: str) -> str:
    """The experiment that has the recipe of a study, by the name of its file of rows: of recipe.jsonl the
    demo, and of recipe_digits_masked.jsonl recipe/digits_masked."""
    return "demo" if name == "recipe" else f"recipe/{name.removeprefix('recipe_')}"


def recipe_rows(studies: dict[str, pd.DataFrame]) -> list[list[str]]:
    """One line per study of recipes, headings first. studies: the rows by the name of their file."""
    titles = ["data", "objective", "experiment", "batch_size", "optim.lr", "held-out loss"]
    lines = [[*titles, *map("÷ usual, {}".format, ARMS)]]
    for name, rows in studies.items():
        found, first = choose_recipe(rows), rows.iloc[0]
        gains = [f"{found.gains[arm]:.3f}" for arm in ARMS]
        choice = [str(found.batch), f"{found.rate:g}", f"{found.loss:.4f}"]
        which = [first["data"], first["objective"], f"`{recipe_experiment(name)}`"]
        lines.append([*which, *choice, *gains])
    return lines


def candidate_rows(rows: pd.DataFrame) -> list[list[str]]:
    """The held-out loss of every pair, mean over the arms, the chosen one in bold: rates by batch sizes."""
    mean, found = losses(rows).mean(axis="columns").unstack(RATE), choose_recipe(rows)
    lines = [["batch_size", *map("optim.lr={:g}".format, mean.columns)]]
    for batch, line in mean.iterrows():
        chosen = [(batch, rate) == (found.batch, found.rate) for rate in mean.columns]
        cells = [
            f"**{loss:.4f}**" if bold else f"{loss:.4f}" for loss, bold in zip(line, chosen, strict=True)
        ]
        lines.append([f"{batch:g}", *cells])
    return lines
