"""Tiny runs that have been measured at constant loop counts (a pytest plugin)."""

from pathlib import Path

import pytest
import torch

from eltlab import fit
from eltlab.generation.anytime_sampler import AnytimeSampler
from support.tiny_run import TINY, find_run

MEASURED = [*TINY, "batch_size=16", "sampler.steps=5", "metrics.samples=40", "trainer.grids=0"]


@pytest.fixture(scope="session", params=["masked", "diffusion"])
def measured_run(request, tmp_path_factory) -> Path:
    """The folder of a run that is measured at 1 to 4 loops. Tests that measure more copy it."""
    runs = tmp_path_factory.mktemp(f"measured-{request.param}")
    fit.main([*MEASURED, f"objective={request.param}", f"runs_dir={runs}"])
    return find_run(runs)


def halfway(model: AnytimeSampler) -> float:
    """A threshold between the second relative update of the first step and what follows."""
    updates = model.sample_batch(torch.arange(16) % 10, 4, seed=0, track=True).updates
    second = sorted(step[1] for step in updates)
    return (second[1] + second[2]) / 2
