"""Figures: their files, and labels that do not overlap."""

from pathlib import Path

import numpy as np
import pytest
from support.analysis_commands import run
from support.made_up_rows import STUDY

from eltlab.analysis import pareto, style
from eltlab.common.errors import UserError

FIGURES = {
    "anytime": ["anytime_small"],
    "pareto": ["loops_vs_depth_quick"],
    "ablation": ["loop_anatomy_quick"],
    "scaling": ["anytime_quick"],
    "dynamics": ["arms=elastic,vanilla-loops4", "anytime_small"],
    "samples": ["anytime_small"],
}


@pytest.mark.integration
@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_written_as_png_and_pdf(name: str, tmp_path: Path) -> None:
    done = run(name, *FIGURES[name], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(f": {name}.png")
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.integration
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "pareto")) for name in FIGURES]
)
def test_the_same_rows_give_the_same_picture(name: str, tmp_path: Path) -> None:
    for out in ("a.png", "b.png"):
        assert run(name, *FIGURES[name], f"out={out}", cwd=tmp_path).returncode == 0
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_names_of_the_front_do_not_overlap() -> None:
    figure = pareto.draw(STUDY)
    figure.canvas.draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        assert len(boxes) >= 3
        for number, one in enumerate(boxes):
            assert not any(one.overlaps(other) for other in boxes[number + 1 :])


def test_heights_move_no_further_than_the_gap_requires() -> None:
    assert style.spread_heights([0.0, 10.0, 30.0], 5.0) == pytest.approx([0, 10, 30])
    found = style.spread_heights([0.0, 10.0, 11.0, 12.0], 5.0)
    assert found == pytest.approx([0, 6, 11, 16]) and np.diff(found).min() >= 5 - 1e-9


def test_the_suffix_chooses_the_files(tmp_path: Path) -> None:
    figure = pareto.draw(STUDY)
    for name, kinds in (("a.png", ["pdf", "png"]), ("b.pdf", ["pdf"]), ("c.svg", ["svg"])):
        written = style.save(figure, tmp_path / name)
        assert sorted(path.suffix[1:] for path in written) == kinds and all(map(Path.is_file, written))
    with pytest.raises(UserError, match=r"out=a\.gif: a figure is \.png"):
        style.save(figure, "a.gif")
