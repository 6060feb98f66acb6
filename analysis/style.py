"""The style of all figures: fonts, log axes and their ticks, a caption below, and the files."""

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

from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.common.text import format_si

GREY = "#777777"
PAGE = 11.2  # inches, the widest figure: the report shows figures in their size
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
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "eltlab",  # makes the ids in the file, and so the file, reproducible
    "svg.fonttype": "path",  # looks the same on every machine
    "pdf.fonttype": 42,
}


@contextmanager
def canvas(
    caption: str, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.8, 3.6)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with columns × rows panels of this size in inches and a caption below."""
    with matplotlib.rc_context(RC):
        width = size[0] * columns
        text = fill(caption, int(18 * width))  # 18 characters per inch at size 7
        below = 0.12 * (text.count("\n") + 1)
        figure = Figure(figsize=(width, size[1] * rows + below), layout="constrained")
        figure.supxlabel(text, x=0.01, ha="left", fontsize=7, color=GREY)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        yield figure, panels
        format_ticks(panels)


def settle(figure: Figure) -> None:
    """Places the panels, so that names can be written at pixels; afterwards limits and texts stay."""
    format_ticks(figure.axes)
    figure.draw_without_rendering()


def panel_width(columns: int, most: float) -> float:
    """The width in inches of each of several panels, at most this much, that makes a figure fit a page."""
    return min(most, PAGE / columns)


def legend_columns(names: list[str], width: float) -> int:
    """How many columns a legend of these names has in this many inches."""
    return max(1, int(width / (0.07 * max(map(len, names)) + 0.5)))


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


def format_ticks(panels: list[Axes]) -> None:
    for axis in (axis for panel in panels for axis in (panel.xaxis, panel.yaxis)):
        format_axis(axis)


def format_axis(axis: Axis) -> None:
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
