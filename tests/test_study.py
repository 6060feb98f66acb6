"""The committed study: what docs/results.md claims holds in the rows, and its tables are theirs."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from eltlab.results import comparable, load

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["masked", "diffusion"])
def study(request: pytest.FixtureRequest) -> tuple[Path, pd.DataFrame]:
    path = ROOT / "analysis" / "data" / f"anytime_{request.param}.jsonl"
    return path, comparable(load(path))


def arm(rows: pd.DataFrame, name: str, loops: int) -> pd.Series:
    """fd_classifier by seed."""
    chosen = rows[rows["name"].str.endswith(f"-{name}") & (rows["loops"] == loops)]
    assert sorted(chosen["seed"]) == [0, 1, 2]
    return chosen.set_index("seed")["fd_classifier"]


def test_half_the_loops_of_the_elastic_model_are_as_good_as_all(study: tuple) -> None:
    _, rows = study
    assert (arm(rows, "elastic", 2) <= 1.3 * arm(rows, "elastic", 4)).all()


def test_half_the_loops_of_the_vanilla_model_are_not(study: tuple) -> None:
    _, rows = study
    assert (arm(rows, "vanilla", 2) >= 10 * arm(rows, "vanilla", 4)).all()


def test_the_twin_is_the_best_arm_at_equal_compute(study: tuple) -> None:
    _, rows = study
    twin = arm(rows, "twin", 1).mean()
    assert twin < arm(rows, "elastic", 4).mean() and twin < arm(rows, "vanilla", 4).mean()


def test_the_arms_differ_in_nothing_else(study: tuple) -> None:
    _, rows = study
    assert rows["protocol"].nunique() == rows["depth"].nunique() == 1
    assert rows["images_seen"].unique().tolist() == [192_000]
    differing = [
        key.removeprefix("cfg.")
        for key in rows.columns
        if key.startswith("cfg.") and rows[key].astype(str).nunique() > 1
    ]
    arms = {"seed", "name", "loops", "unique_layers", "evaluate_loops"}
    assert {key for key in differing if not key.startswith("supervision.")} <= arms


def test_the_tables_of_the_documentation_are_those_of_the_rows(
    study: tuple, tmp_path: Path
) -> None:
    path, _ = study
    script = ROOT / "analysis" / "anytime.py"
    command = [sys.executable, str(script), f"out={tmp_path / 'figure.png'}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    documented = (ROOT / "docs" / "results.md").read_text()
    *table, _ = done.stdout.splitlines()
    for line in table:
        assert line.rstrip() in documented
