"""README.md and docs/ are what `make results` makes of the committed rows."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT

from eltlab.analysis import results, style
from eltlab.analysis.results import PAGES, Results
from eltlab.studies.study_file import known_studies, study_path

TEMPLATES = sorted((ROOT / "analysis" / "pages").rglob("*.md"))
SECTIONS = ["Protocol", "Table", "Finding", "What we believed before"]


@pytest.fixture(scope="module")
def made() -> Results:
    return results.make_results()


@pytest.mark.integration
def test_the_documentation_is_what_the_command_makes(made: Results) -> None:
    for path, text in made.texts.items():
        assert (ROOT / path).read_text() == text, f"{path} is outdated: make results"
    results.refuse_leftovers(made, ROOT)
    for path in made.figures:
        assert (ROOT / path).is_file() and (ROOT / path).with_suffix(".pdf").is_file()
    linked = made.texts[Path("docs", "results.md")]
    for page in (path for path in made.texts if path.parent == PAGES):
        assert f"(results/{page.name})" in linked, f"docs/results.md does not list {page.name}"


@pytest.mark.slow
def test_the_figures_are_those_that_the_command_makes(made: Results, tmp_path: Path) -> None:
    """On one machine their bytes are equal. Another processor may round a coordinate differently, which
    changes the shade of pixels at an edge."""
    for path, draw in made.figures.items():
        new, _ = style.save(draw(), tmp_path / path.name)
        one, other = (np.asarray(Image.open(file).convert("L"), dtype=int) for file in (new, ROOT / path))
        assert one.shape == other.shape, f"{path}: make results"
        assert (abs(one - other) > 32).sum() < 50, f"{path}: make results"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_measured_number_is_typed_by_hand(path: Path) -> None:
    """What looks like one, a decimal number or a percentage, comes from the rows."""
    text = re.sub(
        r"\{%.*?%\}|\{\{.*?\}\}|`[^`]*`|\(https?:[^)]*\)|arXiv [\d.]+", "", path.read_text(), flags=re.DOTALL
    )
    assert re.findall(r"\d*\.\d+|\d+ ?%|±\s*\d+", text) == []


@pytest.mark.parametrize("path", sorted((ROOT / PAGES).glob("*.md")), ids=lambda path: path.name)
def test_a_page_has_its_sections(path: Path) -> None:
    found = re.findall(r"^## (.*)$", path.read_text(), flags=re.MULTILINE)
    assert [title for title in found if title in SECTIONS] == SECTIONS


def test_a_study_has_a_finding_if_it_has_rows() -> None:
    files = [path.stem for path in (ROOT / "analysis" / "data").glob("*.jsonl")]
    for name in known_studies():
        without = "# Finding: none yet.\n" in study_path(name).read_text()
        assert without != any(file.startswith(name) for file in files), name
