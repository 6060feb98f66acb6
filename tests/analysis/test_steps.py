"""Loops or sampling steps: the figure, the command, and what pages show of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.analysis_commands import run
from support.figure_boxes import overlaps
from support.made_up_rows import table
from support.step_rows import SHIFTS, STEPS, quality, rows

from eltlab.analysis import equal_macs, steps
from eltlab.analysis.command import read
from eltlab.analysis.measured_study import MeasuredStudy
from eltlab.common.errors import UserError
from eltlab.runs.row_files import append_rows


def test_values_at_or_below_0_are_compared_too_and_drawn_on_a_linear_axis() -> None:
    found = [each | {"kd_classifier": each["kd_classifier"] - 0.6} for each in rows()]
    before = equal_macs.difference(table(rows()), "elastic@2", "elastic@4")
    assert equal_macs.difference(table(found), "elastic@2", "elastic@4") == pytest.approx(before)
    [axes] = steps.draw(table(found)).axes
    assert axes.get_yscale() == "linear"


def test_the_figure_has_a_line_for_each_loop_count_and_marks_for_schedules() -> None:
    figure = steps.draw(table(rows()))
    [axes] = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log" and axes.get_xlabel() == "MACs per sample"
    joined = [
        line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == len(STEPS)
    ]
    assert len(joined) == 4  # three loop counts and the twin
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert "kd_classifier of 500 samples, 4, 8, 16, 32 steps" in text and "n = 3 seeds" in text
    assert overlaps(figure) == []


def test_the_command_prints_the_points_and_the_comparison(tmp_path: Path) -> None:
    append_rows(tmp_path / "rows.jsonl", rows())
    done = run("steps", "rows.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "arm",
        "loops",
        "steps",
        "MACs",
        "per",
        "sample",
        "kd_classifier",
        "seeds",
        "front",
    ]
    assert lines[1].split()[:3] == ["elastic@1", "1", "4"] and lines[1].endswith("*")
    assert any(line.startswith("at the MACs of elastic@4") for line in lines)
    assert (tmp_path / "steps.png").is_file() and (tmp_path / "steps.pdf").is_file()
    assert run("steps", "rows.jsonl", "baseline=elastik", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(("changes", "said"), [
    ({"steps": 8}, r"requires rows of several numbers of sampling steps; .*'sampler.steps=\[4,8,16\]'"),
    ({"kd_classifier": None}, "the rows have no unbiased distance of samples"),
])  # fmt: skip
def test_rows_that_cannot_be_compared_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        steps.draw(table([each | changes for each in rows()]))


@pytest.mark.integration
def test_a_page_addresses_points_by_their_steps_and_shows_the_figure() -> None:
    drawn = {}

    def add_figure(file: str, alt: str, draw: Any) -> str:
        drawn[file] = draw
        return f"![{alt}]({file})"

    study = MeasuredStudy("s", table(rows()), {"elastic": "the elastic model"}, add_figure, all_settings=True)
    kd = "kd_classifier"
    assert study.value("elastic steps 16@2", kd) == pytest.approx(quality(2, 16) + 2 * np.mean(SHIFTS))
    assert study.value("elastic steps 16 4to1", kd) == pytest.approx(quality(2.5, 16) + 0.1)
    assert study.ratio("elastic steps 32", "elastic steps 4", kd) < 1
    assert study.at_equal_macs("elastic@2", "elastic@4", 8).seeds == 3
    assert study.front().splitlines()[2].startswith("| elastic@1 | 1 | 4 |")
    assert study.equal_macs_table("twin").startswith("| at the MACs of twin | 4 steps |")
    said = study.compare_at_equal_macs("elastic@2", "elastic@4")
    assert said.startswith(
        "the elastic model at 2 loops is behind the elastic model at 4 loops: the difference of"
    )
    study.figure("steps")
    assert drawn["s-steps.png"]().axes


def test_rows_of_one_number_of_steps_have_no_figure() -> None:
    with pytest.raises(UserError, match="requires rows of several numbers of sampling steps"):
        steps.draw(read("anytime_quick"))
