"""Figures: their files and sizes."""

from pathlib import Path

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


@pytest.mark.parametrize("costs", [2, 3])
def test_a_figure_fits_the_page(costs: int) -> None:
    rows = STUDY.assign(train_flops_total=STUDY["macs_per_sample"]) if costs == 3 else STUDY
    figure = pareto.draw(rows)
    assert len(figure.axes) == costs and figure.get_figwidth() <= style.PAGE


@pytest.mark.integration
def test_the_suffix_chooses_the_files(tmp_path: Path) -> None:
    figure = pareto.draw(STUDY)
    for name, kinds in (("a.png", ["pdf", "png"]), ("b.pdf", ["pdf"]), ("c.svg", ["svg"])):
        written = style.save(figure, tmp_path / name)
        assert sorted(path.suffix[1:] for path in written) == kinds and all(map(Path.is_file, written))
    with pytest.raises(UserError, match=r"out=a\.gif: a figure is \.png"):
        style.save(figure, "a.gif")
