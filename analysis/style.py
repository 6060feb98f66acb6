"""The look of all figures: colours by kind of arm, log axes, labels at what they name, a caption below."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from eltlab.analysis.points import KINDS, UNIQUE, VANILLA
from eltlab.errors import UserError
from eltlab.files import renamed
from eltlab.text import si

# Okabe and Ito's colours: told apart by every kind of colour vision. Markers say the same without colour.
LOOKS = {
    UNIQUE: ("#000000", "s"),
    VANILLA: ("#D55E00", "^"),
    KINDS["ilsd"]: ("#0072B2", "o"),
    KINDS["deep"]: ("#009E73", "D"),
    KINDS["random_depth"]: ("#CC79A7", "v"),
}
OTHER = ("#E69F00", "P")  # a supervision of the user's own
GREY = "#777777"
SEQUENCE = [
    "#440154",
    "#3B528B",
    "#21918C",
    "#5EC962",
    "#B8A400",
    "#777777",
]  # ordered, as loops are
MANY = 2000  # marks from which on a figure in vectors holds them as an image

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
    "svg.hashsalt": "eltlab",  # the same figure is the same file
    "svg.fonttype": "path",  # a page looks the same on every machine
    "pdf.fonttype": 42,
}


def look(kind: str) -> tuple[str, str]:
    """Colour and marker of a kind of arm."""
    return LOOKS.get(kind, OTHER)


@contextmanager
def canvas(
    caption: str, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.8, 3.6)
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels of this size in inches, drawn in the house style; its caption below."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        yield figure, axes
        for panel in axes:
            ticks(panel.xaxis)
            ticks(panel.yaxis)
        figure.supxlabel(wrapped(caption, figure), x=0.01, ha="left", fontsize=7, color=GREY)


def wrapped(text: str, figure: Figure) -> str:
    """The text in lines that the figure is wide enough for."""
    from textwrap import fill

    return fill(text, int(21 * figure.get_figwidth()))


def log_axes(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Log scales for the axes that are named; `ticks` numbers them when all is drawn."""
    for name, scale, title in (
        (x, axes.set_xscale, axes.set_xlabel),
        (y, axes.set_yscale, axes.set_ylabel),
    ):
        if name is not None:
            scale("log")
            title(name)


def ticks(axis: Axis) -> None:
    """Numbers as people read them, closer where a log axis spans little; nothing for other axes."""
    if axis.get_scale() != "log":
        return
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1, 1.5, 2, 3, 4, 5, 7) if decades < 1.2 else (1, 2, 5) if decades < 5 else (1,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: si(value)))
    axis.set_minor_formatter(NullFormatter())


Place = tuple[float, float, str, str]  # x, y, text and colour


def label_ends(axes: Axes, places: list[Place], room: float = 0.3) -> None:
    """Writes at the right of what they name, moved up and down until they are apart; room is the share
    of the width that is kept free for them."""
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** room)
    gap = (high / low) ** 0.02
    texts = [
        axes.text(x * gap, y, text, color=colour, fontsize=7.5, va="center")
        for x, y, text, colour in places
    ]
    _apart(axes, texts, only_move={"text": "y", "static": "y", "explode": "y", "pull": "y"})


def label(axes: Axes, places: list[Place]) -> None:
    """Writes beside what they name, where they overlap neither each other nor the points."""
    texts = [
        axes.text(x, y, text, color=colour, fontsize=7.5, ha="left", va="bottom")
        for x, y, text, colour in places
    ]
    line = {"arrowstyle": "-", "color": "#AAAAAA", "lw": 0.5}
    at = {"x": [place[0] for place in places], "y": [place[1] for place in places]}
    _apart(axes, texts, arrowprops=line, **at)


def _apart(axes: Axes, texts: list[Text], **how: Any) -> None:
    from adjustText import adjust_text

    if len(texts) > 1:
        axes.get_figure().canvas.draw()  # type: ignore[union-attr]  # constrained layout places the axes
        adjust_text(texts, ax=axes, iter_lim=300, **how)  # a count, not a time: the same every time


# --- files ----------------------------------------------------------------------------------------

FORMATS = ("png", "pdf", "svg")
PLAIN: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def save(figure: Figure, out: str | Path) -> list[Path]:
    """Writes the figure as a bitmap and as vectors: OUT.png and OUT.pdf, or OUT.svg where out is one."""
    path = Path(out).expanduser()
    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise UserError(f"out={out}: a figure is .png (with .pdf beside it), .pdf or .svg")
    suffixes = ["png", "pdf"] if kind == "png" else [kind]
    files = [path.with_suffix(f".{suffix}") for suffix in suffixes]
    for file, suffix in zip(files, suffixes, strict=True):
        with renamed(file) as temporary, matplotlib.rc_context(RC):
            figure.savefig(temporary, format=suffix, dpi=160, metadata=PLAIN.get(suffix))
    return files


def svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(RC):
        figure.savefig(buffer, format="svg", dpi=110, metadata=PLAIN["svg"])
    return buffer.getvalue()
