"""A finished run without measurements."""

from pathlib import Path

import pytest

from eltlab import fit
from support.tiny_run import TINY, find_run

UNMEASURED = [*TINY, "loops=2", "trainer.grids=0", "evaluate=false"]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of UNMEASURED."""
    runs = tmp_path_factory.mktemp("trained")
    fit.main([*UNMEASURED, f"runs_dir={runs}"])
    return find_run(runs)
