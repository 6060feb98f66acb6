"""The notebooks of analysis/ (pytest runs them, by nbmake): as they are in git."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "analysis").glob("*.ipynb"))


def test_these_are_the_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["anytime.ipynb", "explore.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_no_outputs(path: Path) -> None:
    """They are made anew from the rows; in git they would be numbers without their protocol."""
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert len(cells) >= 5
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
