"""The notebooks of analysis/ run, and have no outputs in git."""

import json
from pathlib import Path

import matplotlib
import nbformat
import pytest
from nbclient import NotebookClient
from support.paths import ROOT

FOLDER = ROOT / "analysis"
NOTEBOOKS = ["anytime", "explore"]
notebooks = pytest.mark.parametrize("name", NOTEBOOKS)


def code_cells(name: str) -> list[dict]:
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_these_are_the_notebooks() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NOTEBOOKS


@notebooks
def test_a_notebook_has_no_outputs(name: str) -> None:
    """Outputs in git would be numbers without a protocol; they are made from the rows when needed."""
    assert len(code_cells(name)) >= 5
    for cell in code_cells(name):
        assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.integration
@notebooks
def test_the_cells_of_a_notebook_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, without a kernel."""
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    with matplotlib.rc_context():
        for cell in code_cells(name):
            lines = [line for line in cell["source"] if not line.startswith("%")]
            exec("".join(lines), known)
    assert len(known["table"]) > 0


@pytest.mark.parametrize("name", ["anytime", pytest.param("explore", marks=pytest.mark.slow)])
@pytest.mark.integration
def test_a_notebook_runs_in_a_kernel(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    done = NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
