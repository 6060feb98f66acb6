"""What arms look like: distinct in every table, in greyscale too, and the same in every figure."""

from itertools import combinations, product
from typing import Any

import pytest
from matplotlib.colors import to_hex
from support.figure_boxes import lightness
from support.made_up_rows import arm, row, table, unique, vanilla
from support.step_rows import COMMITTED

from eltlab.analysis import ablation, anytime, looks, pareto, scaling
from eltlab.analysis.command import committed_files, read
from eltlab.analysis.page import split_sections

FEW = ("loops_vs_depth_quick", "block_size_quick", "pareto_quick")
each_table = pytest.mark.parametrize(
    "name",
    [
        pytest.param(p.stem, marks=[pytest.mark.slow] * (p.stem not in FEW))
        for p in committed_files()
        if p.stem not in COMMITTED
    ],
)


def check_distinct(found: looks.Looks) -> None:
    """No two arms look alike, not even without colours."""
    assert len(set(found.arms.values())) == len(found.arms)
    for one, other in combinations(found.arms.values(), 2):
        if (one.marker, one.fill) == (other.marker, other.fill):
            assert abs(lightness(one.colour) - lightness(other.colour)) > 8
    assert max(lightness(look.colour) for look in found.arms.values()) < 80  # on white


@each_table
def test_arms_of_committed_tables_are_distinct(name: str) -> None:
    for _, rows, protocol in split_sections(read(name)):
        check_distinct(looks.arm_looks(rows, protocol))


@pytest.mark.parametrize("kinds", [1, 2])
def test_fourteen_arms_and_more_are_distinct(kinds: int) -> None:
    """Two learning rates, three widths and four loop counts, with and without other kinds."""
    rows = [
        row(f"loops{loops}-w{width}-lr{rate}", loops, 1.0, trained=loops, layers=8 // loops, width=width)
        for loops in (2, 4, 8) for width in (64, 96, 128) for rate in ("1e-3", "1e-4")
    ]  # fmt: skip
    if kinds == 2:
        rows += [*vanilla("v-lr2", {4: 1.0}), *vanilla("v-lr1", {4: 1.0}), *unique("u", 8, 1.0)]
    found = looks.arm_looks(table(rows))
    assert len(found.arms) == 18 + 3 * (kinds == 2)
    check_distinct(found)


def test_a_kind_keeps_its_hue_and_marker_and_shades_follow_the_loops() -> None:
    rows = [r for n in (8, 2, 4) for r in (*vanilla(f"v{n}", {n: 1.0}, trained=n, layers=8 // n),
                                           *arm(f"e{n}", {n: 1.0}, trained=n, layers=8 // n))]  # fmt: skip
    found = looks.arm_looks(table([*rows, *unique("twin", 8, 1.0)])).arms
    assert found["twin"] == looks.Look("#000000", "s")
    for start, marker in (("v", "^"), ("e", "o")):
        own = [found[f"{start}{n}"] for n in (2, 4, 8)]
        assert {(look.marker, look.fill) for look in own} == {(marker, "full")}
        assert [lightness(look.colour) for look in own] == sorted(lightness(look.colour) for look in own)
    # The middle shade is the colour of the kind, which an arm alone has.
    assert found["v4"].colour == to_hex(looks.base_look("vanilla loop").colour).lower()


def test_a_second_factor_is_the_filling() -> None:
    rows = [
        row(f"w{width}-loops{n}", n, 1.0, trained=n, width=width) for n in (2, 4, 6) for width in (64, 96)
    ]
    found = looks.arm_looks(table([*rows, *unique("twin", 8, 1.0)])).arms
    for width, fill in ((64, "full"), (96, "bottom")):
        assert {found[f"w{width}-loops{n}"].fill for n in (2, 4, 6)} == {fill}
    assert all(found[f"w64-loops{n}"].colour == found[f"w96-loops{n}"].colour for n in (2, 4, 6))


def test_arms_of_one_kind_have_the_palette_and_names_are_in_natural_order() -> None:
    rows = [r for rate in ("lr0.01", "lr1e-04", "lr0.001") for r in arm(rate, {4: 1.0})]
    found = looks.arm_looks(table(rows)).arms
    assert [found[name].colour for name in ("lr1e-04", "lr0.001", "lr0.01")] == looks.PALETTE[:3]
    assert [found[name].marker for name in ("lr1e-04", "lr0.001", "lr0.01")] == looks.MARKERS[:3]


def test_more_arms_than_looks_repeat_them() -> None:
    rows = [r for n in range(100) for r in arm(f"a{n}", {4: 1.0})]
    assert len(set(looks.arm_looks(table(rows)).arms.values())) == 80


@pytest.mark.parametrize("module", [anytime, pareto, scaling, ablation])
def test_an_arm_looks_the_same_in_every_figure(module: Any) -> None:
    rows = [r for seed in (0, 1) for r in unique("plain", 8, 10.0, seed=seed)]
    for n, seed in product((2, 4), (0, 1)):
        rows += vanilla(f"v{n}", {n: 30.0 + n}, trained=n, layers=8 // n, seed=seed)
        rows += arm(f"e{n}", {n: 27.0 + n}, trained=n, layers=8 // n, seed=seed)
    rows = table(rows)
    expected = looks.arm_looks(rows).arms
    for axes in module.draw(rows).axes:
        drawn = {
            (line.get_color(), line.get_marker(), line.get_fillstyle())
            for line in axes.lines
            if line.get_marker() != "None"
        }
        arms = set(expected) - ({"plain"} if module is ablation else set())  # the baseline is the line at 1
        assert drawn == {tuple(expected[name]) for name in arms}
