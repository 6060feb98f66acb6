"""The style of all figures: colours by kind of arm, log axes, labels next to points, a caption below."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy import optimize

from eltlab.analysis.points import KINDS, UNIQUE, VANILLA
from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.common.text import format_si

# Okabe and Ito's palette, which is safe for colour-blind readers. Markers carry the same information.
LOOKS = {
    UNIQUE: ("#000000", "s"),
    VANILLA: ("#D55E00", "^"),
    KINDS["ilsd"]: ("#0072B2", "o"),
    KINDS["deep"]: ("#009E73", "D"),
    KINDS["random_depth"]: ("#CC79A7", "v"),
}
OTHER = ("#E69F00", "P")  # the user's own supervision
GREY = "#777777"
# An ordered palette, for loops.
SEQUENCE = ["#440154", "#3B528B", "#21918C", "#5EC962", "#B8A400", "#777777"]
MANY = 2000  # with more marks than this, vector figures store them as an image

LARGE = ("images seen",)  # linear axes with these labels have SI prefixes

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "eltlab",  # makes the ids in the file, and so the file, reproducible
    "svg.fonttype": "path",  # looks the same on every machine
    "pdf.fonttype": 42,
}


def look_of(kind: str) -> tuple[str, str]:
    """The colour and the marker of a kind of arm."""
    return LOOKS.get(kind, OTHER)


@contextmanager
def canvas(
    caption: str, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.8, 3.6)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with columns × rows panels of this size in inches and a caption below."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        yield figure, axes
        for panel in axes:
            format_ticks(panel.xaxis)
            format_ticks(panel.yaxis)
        text = fill(caption, int(19 * figure.get_figwidth()))  # 19 characters per inch at size 7
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=GREY)


def set_log_axes(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Sets log scales and titles for the axes that have one; `canvas` formats the ticks at the end."""
    for name, scale, title in (
        (x, axes.set_xscale, axes.set_xlabel),
        (y, axes.set_yscale, axes.set_ylabel),
    ):
        if name is not None:
            scale("log")
            title(name)


def make_room_below_0(axes: Axes, heights: Any) -> None:
    """Makes the y axis linear if a height is at or below 0, which has no place on a log axis."""
    if (np.asarray(heights) <= 0).any():
        axes.set_yscale("linear")


def format_ticks(axis: Axis) -> None:
    """Formats ticks with SI prefixes, and places more of them on a log axis that spans few decades."""
    if axis.get_scale() != "log":
        if axis.get_label_text() in LARGE:
            axis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
        return
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 5 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
    axis.set_minor_formatter(NullFormatter())


Place = tuple[float, float, str, str]  # x, y, text and colour
TEXT = 7.5  # points
OBSTACLES = 300
LEADER = {"arrowstyle": "-", "color": "#AAAAAA", "lw": 0.5}


def label_ends(axes: Axes, places: list[Place]) -> None:
    """Writes labels in a column on the right, as near to the height of their points as the labels allow.

    Widens the x axis so that the longest one fits.
    """
    if not places:
        return
    places = [(x, y, truncate(text), colour) for x, y, text, colour in places]
    inches = axes.get_figure().get_figwidth() / axes.get_subplotspec().get_gridspec().ncols  # type: ignore[union-attr]
    share = min(0.6, max(len(place[2]) for place in places) * 0.062 / (inches - 0.8) + 0.04)
    room = share / (1 - share)
    scale = axes.xaxis.get_transform()
    low, high = scale.transform(axes.get_xlim())
    right, column = scale.inverted().transform([high + room * (high - low), high])
    axes.set_xlim(right=right)
    figure = axes.get_figure()
    figure.canvas.draw()  # type: ignore[union-attr]  # constrained layout places the axes
    places = sorted(places, key=lambda place: place[1])
    ends = axes.transData.transform([(x, y) for x, y, *_ in places])
    # / 60 and not / 72, the points per inch: a line is 1.2 times as high as its text.
    heights = spread_heights(ends[:, 1], TEXT * figure.dpi / 60)  # type: ignore[union-attr]
    at = axes.transData.inverted().transform([(0, height) for height in heights])[:, 1]
    for (x, y, text, colour), height in zip(places, at, strict=True):
        axes.annotate(
            text,
            (x, y),
            (column, height),
            color=colour,
            fontsize=TEXT,
            va="center",
            arrowprops={**LEADER, "shrinkA": 0, "shrinkB": 3},
        )


def spread_heights(heights: Any, gap: float) -> Any:
    """The heights closest to these ascending ones, in least squares, that are at least gap apart."""
    # With the required gaps subtracted, "at least gap apart" becomes "non-decreasing".
    steps = gap * np.arange(len(heights))
    return optimize.isotonic_regression(np.asarray(heights) - steps).x + steps


def truncate(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def label_points(axes: Axes, places: list[Place], others: Any) -> None:
    """Writes labels next to their points, without overlapping each other or other points.

    others: [n, 2], in data coordinates; only the first OBSTACLES points are avoided.
    """
    from adjustText import adjust_text

    texts = [
        axes.text(x, y, truncate(text, 20), color=colour, fontsize=TEXT, ha="left", va="bottom")
        for x, y, text, colour in places
    ]
    axes.get_figure().canvas.draw()  # type: ignore[union-attr]
    own = np.array([place[:2] for place in places], dtype=float).reshape(-1, 2)
    avoided = np.concatenate([own, others])[:OBSTACLES]
    adjust_text(
        texts,
        *avoided.T,
        target_x=list(own[:, 0]),
        target_y=list(own[:, 1]),
        ax=axes,
        iter_lim=300,  # a limit on rounds instead of seconds, so that results are reproducible
        expand=(1.1, 1.5),
        ensure_inside_axes=False,  # it would print a warning if it failed
        arrowprops=LEADER,
    )


# --- files ----------------------------------------------------------------------------------------

FORMATS = ("png", "pdf", "svg")
PLAIN: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save(figure: Figure, out: str | Path) -> list[Path]:
    """Writes OUT.png and OUT.pdf, or only OUT.pdf or OUT.svg, depending on the suffix of out."""
    path = Path(out).expanduser()
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"out={out}: a figure is .png (a .pdf is written too), .pdf or .svg")
    suffixes = ["png", "pdf"] if kind == "png" else [kind]
    files = [path.with_suffix(f".{suffix}") for suffix in suffixes]
    for file, suffix in zip(files, suffixes, strict=True):
        with atomic_path(file) as temporary, matplotlib.rc_context(RC):
            figure.savefig(temporary, format=suffix, dpi=160, metadata=PLAIN.get(suffix))
    return files


def render_svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", dpi=110, metadata=PLAIN["svg"])
    return buffer.getvalue()
