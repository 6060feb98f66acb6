"""Where the names, marks and lines of a figure are, as its renderer measures them."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.path import Path
from matplotlib.transforms import Bbox


def overlaps(figure: Figure) -> list[str]:
    """What covers a name: another name, a mark, a line, a panel next to it, or the figure's edge."""
    figure.draw_without_rendering()
    names = {axes: list(find_names(axes)) for axes in figure.axes}
    keys = [(text.get_text(), box_of(text)) for legend in figure.legends for text in legend.get_texts()]
    every = [*(name for boxes in names.values() for name in boxes), *keys]
    pairs = combinations(every, 2)
    found = [f"{one} and {other}" for (one, first), (other, second) in pairs if first.overlaps(second)]
    found += [f"{text} and the edge" for text, box in every if not is_inside(box, figure.bbox)]
    for axes, boxes in names.items():
        for text, box in boxes:
            found += [f"{text} and {what}" for what in drawn_in(axes, box)]
            others = (panel for panel in figure.axes if panel is not axes)
            found += [f"{text} and a panel" for panel in others if box.overlaps(panel.get_window_extent())]
    return found


def is_inside(box: Bbox, whole: Bbox) -> bool:
    return whole.contains(*box.p0) and whole.contains(*box.p1)


def find_names(axes: Axes) -> Iterator[tuple[str, Bbox]]:
    """The names in a panel and in the column next to it."""
    legends = [each for each in axes.get_children() if isinstance(each, Legend)]
    for text in [*axes.texts, *(text for legend in legends for text in legend.get_texts())]:
        yield text.get_text(), box_of(text)


def box_of(text: Any) -> Bbox:
    """The box of a text, without the pixel that neighbours may share."""
    return text.get_window_extent().padded(-0.5)


def drawn_in(axes: Axes, box: Bbox) -> Iterator[str]:
    """The lines and marks of a panel that cross this box."""
    for line in axes.lines:
        corners = line.get_transform().transform(line.get_xydata())
        joined = line.get_linestyle() != "None" and len(corners) > 1
        if joined and Path(corners).intersects_bbox(box, filled=False):
            yield f"the line {line.get_label()}"
        if line.get_marker() != "None":
            radius = line.get_markersize() / 2 * axes.figure.dpi / 72
            wide = box.padded(radius)
            if ((corners > wide.p0) & (corners < wide.p1)).all(axis=1).any():
                yield f"a mark of {line.get_label()}"
    for collection in axes.collections:
        for path in collection.get_paths():
            if len(path) == 2 and path.transformed(axes.transData).intersects_bbox(box, filled=False):
                yield "an interval"


def lightness(colour: Any) -> float:
    """The CIE lightness L* of a colour, 0 to 100: what remains of it in greyscale."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = float(np.dot([0.2126, 0.7152, 0.0722], linear))
    return 116 * luminance ** (1 / 3) - 16 if luminance > 0.008856 else 903.3 * luminance
