"""Runs on a few figures of data=sprites (a pytest plugin)."""

from pathlib import Path

import pytest

from eltlab.data.clips import sprites
from eltlab.runs.compose_config import compose
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit
from support.shared_data import sprite_sheets
from support.tiny_run import TINY

SMALL = [
    *TINY,
    *("loops=2", "budget.images=32", "sampler.steps=3", "trainer.grids=1", "trainer.validations=1"),
    *("metrics.samples=18", "metrics.reference=36", "metrics.statistics=reference"),
]


@pytest.fixture
def few_sprites(monkeypatch) -> str:
    """data.root of the sheets, with two variants per layer: 16 figures, 10 of them for training."""
    monkeypatch.setattr(sprites, "VARIANTS", 2)
    monkeypatch.setattr(sprites, "TRAIN", 10)
    return sprite_sheets()


def trained(few_sprites: str, folder: Path, *overrides: str) -> tuple[Run, list[dict]]:
    config = compose(["data=sprites", f"data.root={few_sprites}", *SMALL, f"runs_dir={folder}", *overrides])
    fit(config)
    run = Run.of(config)
    return run, [row for row in read_rows(run.rows) if row["kind"] == "eval"]
