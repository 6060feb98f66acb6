"""The computed costs of the published rows against the published ones, and the table of both."""

import pytest
from support.analysis_commands import run
from support.paper_rows import ROWS

from eltlab.analysis import paper

IMAGE_L = ("maskgit_l", "elt_l_8x3", "elt_l_12x2")
VIDEO = ("magvit_l", "elt_video_6x4", "elt_video_6x6")
XL = ("maskgit_xl", "elt_xl_7x4")
ROUNDED = ("dit_16", "dit_32", "elt_dit_16x2")  # printed as 1.1B and 2.1B


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_the_published_ones(name):
    row, _, ours = ROWS[name]
    within = 0.025 if name in ROUNDED else 0.01
    assert paper.params_as_counted(row, ours) / 1e6 == pytest.approx(row.params, rel=within)


@pytest.mark.parametrize("name", VIDEO)
def test_macs_of_video_are_the_published_ones(name):
    row, _, ours = ROWS[name]
    assert ours.trunk / 1e9 == pytest.approx(row.gmacs, rel=0.01)


@pytest.mark.parametrize("name", IMAGE_L)
def test_macs_of_image_l_are_the_published_ones_without_attention(name):
    row, _, ours = ROWS[name]
    assert ours.linear / 1e9 == pytest.approx(row.gmacs, rel=0.01)


def test_only_the_macs_of_xl_cannot_be_reached():
    [note] = paper.explain_deviations()
    assert note.startswith(f"{', '.join(XL)}: ")
    assert "5.50k to 5.71k; the published 3.9k" in note
    # What the paper prints for XL is what L takes with attention.
    assert note.endswith(f"The figure equals that of {', '.join(IMAGE_L)}.")
    for name in XL:
        row, _, ours = ROWS[name]
        assert ours.linear / 1e9 > 1.4 * row.gmacs


@pytest.mark.parametrize(("name", "fraction"), [("elt_l_8x3", 3), ("elt_dit_8x4", 4)])
def test_looping_divides_the_blocks_and_keeps_the_macs(name, fraction):
    baseline = {"elt_l_8x3": "maskgit_l", "elt_dit_8x4": "dit_32"}[name]
    looped, whole = ROWS[name][2], ROWS[baseline][2]
    assert whole.params_blocks == fraction * looped.params_blocks
    assert whole.trunk == looped.trunk


def test_the_table_names_every_row_with_signed_deviations():
    done = run("paper")
    for name in ROWS:
        [line] = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert "%" in line
    assert "maskgit_xl" in done.stdout and "+46.3%" in done.stdout and "-0.2%" in done.stdout
