"""The README has the figure and the tables that `make readme` makes of the committed rows."""

from pathlib import Path

import pytest
from support.analysis_commands import run
from support.paths import ROOT

README = ROOT / "README.md"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A copy of the README."""
    page = tmp_path / "README.md"
    page.write_text(README.read_text())
    return page


def test_the_readme_has_the_performance_tables_of_the_rows(page: Path) -> None:
    done = run("performance", f"into={page}", ROOT / "benchmarks" / "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert page.read_text() == README.read_text()
    assert page.read_text().count("÷ twin") >= 3


def test_the_headline_of_the_readme_is_that_of_the_rows(page: Path) -> None:
    figure = page.parent / "docs" / "anytime_diffusion.png"
    done = run("headline", f"into={page}", f"figure={figure}", "anytime_diffusion")
    assert done.returncode == 0, done.stderr
    assert page.read_text() == README.read_text()
    assert figure.is_file() and figure.with_suffix(".pdf").is_file()
    assert "| elastic | 2 x 4 |" in page.read_text()
