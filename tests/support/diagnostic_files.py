"""Runs with the files of diagnostics, metrics.csv, validation.csv and dynamics.csv: trained or made up."""

import csv
from pathlib import Path

from eltlab import fit
from eltlab.runs.run_folder import Run
from support.made_up_rows import arm
from support.tiny_run import TINY, find_run


def train(runs: Path, *overrides: str) -> Run:
    """Trains a tiny run that logs every step and validates twice."""
    logged = ["evaluate=false", "trainer.grids=0", "trainer.log_every=1", "trainer.validations=2"]
    fit.main([*TINY, *logged, f"runs_dir={runs}", *overrides])
    return Run.open(find_run(runs))


def lines(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV file of numbers, without empty columns."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


DYNAMICS = "protocol,images_seen,sample_seed,loops,step,loop,update\n"
VALIDATION = "step,images,exit,level,loss,gap\n"


def run(folder: Path, seed: int, scale: float) -> list[dict]:
    """A made-up run of two loops with its files: updates of scale / loop, exit losses of scale / exit."""
    folder.mkdir(parents=True)
    moved = "".join(f"aaaa,9,0,2,{step},{n},{scale / n}\n" for step in (0, 1) for n in (1, 2))
    other = "bbbb,9,0,2,0,1,999\naaaa,9,0,4to1,0,1,999\naaaa,5,0,2,0,1,999\n"
    (folder / "dynamics.csv").write_text(DYNAMICS + moved + other)
    losses = "".join(f"1,8,{n},{level},{scale / n + level},0\n" for n in (1, 2) for level in (0.0, 2.0))
    (folder / "validation.csv").write_text(VALIDATION + losses)
    return arm("elastic", {1: 9.0, 2: 5.0}, trained=2, seed=seed, folder=str(folder), images_seen=9)
