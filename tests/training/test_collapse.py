"""The warning about later loops that do nothing."""

import csv
from collections import defaultdict
from pathlib import Path

import pytest
from support.paths import ROOT

from eltlab.config.schema import DeepConfig, FinalConfig, IlsdConfig, RandomDepthConfig
from eltlab.training.collapse import collapse_note

SMALL = ROOT / "analysis/data/anytime_small/anytime-small"


def test_a_collapsed_model_is_named_with_its_updates_and_the_key() -> None:
    updates = {1: 3.08, 2: 0.17, 3: 0.12, 4: 0.10}
    note = collapse_note(updates, IlsdConfig("ilsd"))
    assert note is not None
    assert "3.08, 0.17, 0.12, 0.10" in note and "supervision.min_loops" in note and "\n" not in note
    assert collapse_note(updates, RandomDepthConfig("random_depth")) == note
    for other in (FinalConfig("final"), DeepConfig("deep")):  # without that key
        assert collapse_note(updates, other) == note.partition("; supervision")[0]


@pytest.mark.parametrize(
    "updates",
    [
        {1: 0.84, 2: 0.48, 3: 0.30, 4: 0.21},
        {1: 3.0},  # one loop
        {2: 0.0, 3: 0.0},  # the first was not reported
        {1: 0.0, 2: 0.0},  # adaLN-zero before its first step: no loop does anything
        {},
    ],
)
def test_other_models_are_not(updates: dict[int, float]) -> None:
    assert collapse_note(updates, IlsdConfig("ilsd")) is None


def updates_of(path: Path, loops: str) -> dict[int, float]:
    """The mean relative update of each loop in a run's dynamics.csv."""
    found = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["loops"] == loops:
                found[int(row["loop"])].append(float(row["update"]))
    return {loop: sum(values) / len(values) for loop, values in found.items()}


def test_the_rule_separates_the_committed_runs() -> None:
    """Three runs whose four loops are no better than one, against three whose loops all count."""
    collapsed = [updates_of(path, "4") for path in SMALL.glob("elastic/*/dynamics.csv")]
    healthy = [updates_of(path, "4") for path in SMALL.glob("vanilla-loops4/*/dynamics.csv")]
    assert len(collapsed) == len(healthy) == 3
    assert all(collapse_note(updates, FinalConfig("final")) for updates in collapsed)
    assert not any(collapse_note(updates, FinalConfig("final")) for updates in healthy)
