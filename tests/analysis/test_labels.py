"""Names in figures: they overlap nothing, and stay near what they name."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from support.figure_boxes import overlaps
from support.made_up_rows import STUDY, arm, table, unique, vanilla
from support.step_rows import COMMITTED

from eltlab.analysis import anytime, dynamics, labels, pareto, scaling, steps
from eltlab.analysis.command import committed_files, read
from eltlab.analysis.page import split_sections

FIGURES = {"anytime": anytime.draw, "pareto": pareto.draw, "scaling": scaling.draw}
FEW = [("loops_vs_depth_quick", "pareto"), ("block_size_quick", "anytime")]


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        pytest.param(path.stem, figure, marks=[pytest.mark.slow] * ((path.stem, figure) not in FEW))
        for path in committed_files()
        if path.stem not in COMMITTED
        for figure in FIGURES
    ],
)
def test_names_overlap_nothing_in_figures_of_committed_rows(name: str, figure: str) -> None:
    for _, rows, protocol in split_sections(read(name)):
        assert overlaps(FIGURES[figure](rows, protocol=protocol)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMITTED)
def test_names_overlap_nothing_in_the_figure_of_steps(name: str) -> None:
    assert overlaps(steps.draw(read(name))) == []


@pytest.mark.slow
def test_names_overlap_nothing_in_dynamics() -> None:
    assert overlaps(dynamics.draw(read("anytime_small"))) == []


@pytest.mark.parametrize("figure", FIGURES)
def test_names_of_fourteen_arms_that_end_at_one_height_overlap_nothing(figure: str) -> None:
    rows = [r for n in range(7) for r in (*arm(f"elastic-number-{n}", {1: 9.0, 2: 5.0, 4: 4.0}),
                                          *vanilla(f"vanilla-number-{n}", {2: 9.0, 4: 4.0}))]  # fmt: skip
    rows = table([*rows, *(each | {"heldout_loss": 3.99} for each in unique("twin", 8, 1.0))])
    drawn = FIGURES[figure](rows)
    assert overlaps(drawn) == []
    if figure != "pareto":
        names = [text.get_text() for text in names_of(drawn)]
        assert sum(name.startswith(("elastic-number-", "vanilla-number-")) for name in names) == 14


def test_names_of_more_arms_than_are_named_overlap_nothing() -> None:
    """The figure is as high as they need, and its long caption does not press its panel."""
    rows = [r for n in range(45) for r in arm(f"an-arm-with-a-long-name-{n}", {1: 9.0, 4: 5.0})]
    assert overlaps(anytime.draw(table(rows))) == []


def names_of(figure: plt.Figure) -> list:
    [axes] = figure.axes
    legends = [each for each in axes.get_children() if isinstance(each, labels.Legend)]
    return [text for legend in legends for text in legend.get_texts()]


def test_the_check_of_overlaps_finds_them() -> None:
    figure = anytime.draw(STUDY)
    [axes] = figure.axes
    line = axes.lines[0]
    axes.text(*line.get_xydata()[0], "on a mark")
    axes.text(*line.get_xydata()[0], "on a mark")
    found = overlaps(figure)
    assert "on a mark and on a mark" in found and any(
        each.startswith("on a mark and a mark") for each in found
    )


def test_points_of_fronts_have_their_loop_counts() -> None:
    right = pareto.draw(STUDY).axes[1]
    assert sorted(text.get_text() for text in right.texts) == ["@1", "@1", "@2", "@2"]


def test_a_name_without_room_is_not_written() -> None:
    figure, axes = plt.subplots()
    x, y = np.meshgrid(np.linspace(0, 1, 80), np.linspace(0, 1, 80))
    axes.plot(x.ravel(), y.ravel(), "o")
    labels.label_points(axes, [labels.Place(x[40, 40], y[40, 40], "here")])
    assert not axes.texts
    plt.close(figure)


def test_the_descent_of_a_name_keeps_its_distance_too() -> None:
    figure, axes = plt.subplots()
    axes.plot([0, 1, 2], [0, 1, 2], "o")
    figure.draw_without_rendering()
    labels.label_points(axes, [labels.Place(1, 1, "gy@")])
    point = axes.transData.transform((1, 1))
    [text] = axes.texts
    assert text.get_window_extent().y0 - point[1] == pytest.approx(4 * figure.dpi / 72, abs=0.1)
    plt.close(figure)


def test_heights_move_no_further_than_the_gap_requires() -> None:
    assert labels.spread_heights([0.1, 0.3, 0.7], 0.1) == pytest.approx([0.1, 0.3, 0.7])
    found = labels.spread_heights([0.1, 0.50, 0.51, 0.52], 0.1)
    assert found == pytest.approx([0.1, 0.41, 0.51, 0.61])
    assert labels.spread_heights([0.0, 0.0, 1.0], 0.1) == pytest.approx([0.05, 0.15, 0.95])
    assert labels.spread_heights([1.0, 1.0], 0.1) == pytest.approx([0.85, 0.95])


def test_long_names_keep_both_ends() -> None:
    assert labels.shorten("short") == "short"
    name = labels.shorten("cosine-start0.004441-end0.8644-min_loops1-distill1.57")
    assert len(name) <= 40 and name.startswith("cosine-start0.004") and name.endswith("distill1.57")
