"""The line of a study file that says whether its quick preset can tell its arms apart.

`make results` writes it into sweeps/NAME.yaml from the rows of analysis/data/NAME_quick.jsonl.
"""

import re
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
import pandas as pd

from eltlab.analysis.metrics import HELD_OUT
from eltlab.runs import result_table

ENOUGH = 2  # the spread between arms must exceed this many spreads between seeds
LINE = re.compile(r"# Quick: .*?\n(?=# Finding: )", re.S)


class Spread(NamedTuple):
    """Standard deviations of the held-out loss at the trained loops."""

    arms: float  # of the means of the arms
    seeds: float  # of the seeds of an arm, pooled over the arms

    @property
    def is_enough(self) -> bool:
        return self.arms > ENOUGH * self.seeds


def measure_spread(rows: pd.DataFrame) -> Spread:
    own = rows[(rows["kind"] == "eval") & (rows["loops"] == rows["loops_train"])]
    arms = own.groupby(["name", "seed"])[HELD_OUT].mean().groupby("name")
    return Spread(float(arms.mean().std()), float(np.sqrt(arms.var().mean())))


def elapsed_minutes(rows: pd.DataFrame) -> float:
    """From the first step of the first training to the last row."""
    rows = rows[rows["kind"] == "eval"]
    ended = pd.to_datetime(rows["created"])
    started = ended - pd.to_timedelta(rows["train_seconds"], unit="s")
    return (ended.max() - started.min()).total_seconds() / 60


def describe_quick(quick: pd.DataFrame, full: pd.DataFrame | None) -> str:
    """The comment. full: the rows of the whole study, which are mentioned if the quick ones are too close."""
    spread, minutes = measure_spread(quick), elapsed_minutes(quick)
    text = (
        f"Quick: the held-out loss spreads by {spread.arms:.4f} between arms and by {spread.seeds:.4f} "
        f"between seeds (standard deviations), in {minutes:.0f} minutes on two cores."
    )
    if not spread.is_enough:
        text += " This is too little to order the arms"
        if full is None:
            text += "; the full budget has not been run."
        else:
            larger = measure_spread(full)
            verdict = "does" if larger.is_enough else "does not either"
            text += f"; the full budget {verdict}: {larger.arms:.4f} and {larger.seeds:.4f}."
    return fill(text, width=124, initial_indent="# ", subsequent_indent="# ") + "\n"


def study_headers(root: Path) -> dict[Path, str]:
    """The text of each study file that has rows of its quick preset, by its path relative to root."""
    texts = {}
    for path in sorted((root / "sweeps").glob("*.yaml")):
        quick, full = (read_measured(root, path.stem + suffix) for suffix in ("_quick", ""))
        if quick is not None:
            text = LINE.sub("", path.read_text())
            line = describe_quick(quick, full)
            texts[path.relative_to(root)] = text.replace("# Finding: ", line + "# Finding: ", 1)
    return texts


def read_measured(root: Path, name: str) -> pd.DataFrame | None:
    """The rows of a study, if there are any with held-out losses of several seeds."""
    file = root / "analysis" / "data" / f"{name}.jsonl"
    if not file.is_file():
        return None
    rows = result_table.load(file)
    return rows if rows[HELD_OUT].notna().any() and rows["seed"].nunique() > 1 else None
