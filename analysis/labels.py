"""Names in figures that overlap neither curves, nor points, nor each other."""

from itertools import pairwise, product
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from scipy import optimize

TEXT = 7.5  # points
LINE = 1.25 * TEXT  # the height of a line of text in points


class End(NamedTuple):
    """A name in the column next to a panel."""

    height: float  # in data coordinates
    text: str
    line: dict[str, Any]  # the keywords of its sample of a line


class Place(NamedTuple):
    """A name next to a point."""

    x: float
    y: float
    text: str


def label_ends(axes: Axes, ends: list[End]) -> None:
    """Writes names in a column on the right of a panel, each with a sample of its line, as near to their
    heights as the names allow.

    The caller has settled the figure (`style.settle`), which is high enough for all (`column_height`).
    """
    if not ends:
        return
    ends = sorted(ends, key=lambda end: end.height)
    pixels = axes.transData.transform([(0, end.height) for end in ends])[:, 1]
    share = (pixels - axes.bbox.y0) / axes.bbox.height  # of the panel's height
    gap = LINE / 72 * axes.get_figure().dpi / axes.bbox.height  # type: ignore[union-attr]
    for end, height in zip(ends, spread_heights(share, gap), strict=True):
        name = Legend(
            *(axes, [Line2D([], [], **end.line)], [shorten(end.text)]),
            loc="center left", bbox_to_anchor=(1, height), fontsize=TEXT, frameon=False,
            borderpad=0, borderaxespad=1, handlelength=1.6, handletextpad=0.5,
        )  # fmt: skip
        name.set_clip_on(False)
        axes.add_artist(name)


def column_height(names: int) -> float:
    """The height in inches of a figure whose panel has room for this many names next to it."""
    return names * LINE / 72 + 0.8


def spread_heights(heights: Any, gap: float) -> Any:
    """The heights closest to these ascending ones, in least squares, that are at least gap apart and, if
    there is room for all, at least half a gap inside 0 to 1."""
    # With the required gaps subtracted, "at least gap apart" becomes "non-decreasing".
    steps = gap * np.arange(len(heights))
    found = optimize.isotonic_regression(np.asarray(heights) - steps).x
    return np.clip(found, gap / 2, max(gap / 2, 1 - gap / 2 - steps[-1])) + steps


def shorten(text: str, most: int = 40) -> str:
    """The text without its middle if it is long: names often differ at their ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


# --- next to points -------------------------------------------------------------------------------

DIRECTIONS = [(1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)]
DISTANCES = [4, 8]  # points; from farther away it would not be clear which point is meant
RADIUS = 3.5  # points; of a mark


def label_points(axes: Axes, places: list[Place]) -> None:
    """Writes names next to their points if they fit there without overlap; the others are not written.

    The caller has settled the figure (`style.settle`).
    """
    unit = axes.get_figure().dpi / 72  # type: ignore[union-attr]
    drawn = drawn_pixels(axes)
    taken: list[Bbox] = []
    for place in places:
        text = axes.annotate(
            place.text, place[:2], (0, 0), textcoords="offset points", color="#333333", fontsize=TEXT,
            va="bottom",  # the position is a corner of the text's box, not of its baseline
        )  # fmt: skip
        text.set_in_layout(False)
        size = np.array(text.get_window_extent().size)
        at = axes.transData.transform(place[:2])
        for distance, direction in product(DISTANCES, DIRECTIONS):
            shift = distance * unit * np.array(direction) + size * (np.sign(direction) - 1) / 2
            box = Bbox([at + shift, at + shift + size])
            around = box.padded(RADIUS * unit)
            inside = axes.bbox.contains(*box.p0) and axes.bbox.contains(*box.p1)
            if inside and not around.count_contains(drawn) and not box.count_overlaps(taken):
                taken.append(box)
                text.set_position(tuple(shift / unit))
                break
        else:
            text.remove()


def drawn_pixels(axes: Axes) -> np.ndarray:
    """The marks of a panel's lines, and their segments in steps of at most two pixels: float [n, 2]."""
    found = [np.empty((0, 2))]
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        found.append(corners)
        if line.get_linestyle() != "None":
            found += [
                np.linspace(one, other, int(np.abs(other - one).max() / 2) + 2)
                for one, other in pairwise(corners)
            ]
    return np.concatenate(found)
