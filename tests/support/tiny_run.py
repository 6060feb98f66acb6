"""A run that takes moments: width 16, one unique layer x four loops, eight steps."""

from pathlib import Path

from eltlab.config.schema import Config
from eltlab.runs.compose_config import compose

TINY = """model.width=16 model.heads=2 model.mlp_width=24 model.depth=4 data.codebook=16
    batch_size=8 budget.images=64 sampler.steps=4 metrics.samples=20 trainer.accelerator=cpu""".split()  # noqa: SIM905


def tiny(*overrides: str) -> Config:
    return compose([*TINY, *overrides])


def find_run(runs: Path) -> Path:
    """The folder of the only run in runs."""
    [config] = runs.rglob("config.yaml")
    return config.parent
