"""One picture of samples: arms by loop counts, with the same noise and labels in each cell.

    python -m eltlab.analysis.samples [out=samples.png] [protocol=ID] [ROWS …]

Reads the sample grids that evaluate wrote to each run's samples/ folder.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import imread

from eltlab.analysis import command, style
from eltlab.analysis.chosen_settings import reported_rows
from eltlab.analysis.points import caption_of_sampling, name_arms
from eltlab.analysis.text_values import as_text
from eltlab.common.errors import UserError
from eltlab.common.text import format_loops
from eltlab.runs.row_files import SETTINGS


def find_tiles(table: pd.DataFrame, protocol: str | None = None) -> dict[str, dict[int, Path]]:
    """The sample grid of each arm and loop count, for the first seed. Raises UserError if there is none."""
    rows = name_arms(reported_rows(table, protocol))
    rows = rows[(rows["seed"] == rows["seed"].min()) & (rows["loop_schedule"] == "constant")]
    found: dict[str, dict[int, Path]] = {}
    for row in rows.itertuples():
        path = find_picture(row)
        if path is not None:
            found.setdefault(row.arm, {})[int(row.loops)] = path
    if not found:
        raise UserError("no samples next to these rows; give the folders of evaluated runs")
    return found


def find_picture(row: Any) -> Path | None:
    """The picture of a measurement: loops_004.png, or loops_004_guidance_2.0.png if its guidance is not the
    run's own. Of all names whose settings are those of the row, the longest is its own."""
    start = f"loops_{int(row.loops):03}"
    found = []
    for path in (Path(row.folder) / "samples" / row.protocol).glob(f"{start}*"):
        rest = path.stem.removeprefix(start)
        for column in SETTINGS:
            value = getattr(row, column, None)
            for text in (str(value), *as_text(pd.Series([value]))):
                rest = rest.removeprefix(f"_{column}_{text}")
        if not rest:
            found.append(path)
    return max(found, key=lambda path: len(path.stem), default=None)


def draw(table: pd.DataFrame, protocol: str | None = None) -> Figure:
    arms = find_tiles(table, protocol)
    columns = sorted({loops for pictures in arms.values() for loops in pictures})
    shown = "pictures of the first"
    text = f"{caption_of_sampling(table, protocol, shown)}; the same noise and labels everywhere"
    shape = (len(columns), len(arms))
    with style.canvas(text, *shape, size=(2.6, 1.25)) as (figure, panels):
        for number, axes in enumerate(panels):
            name, loops = list(arms)[number // len(columns)], columns[number % len(columns)]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if loops in arms[name]:
                axes.imshow(imread(arms[name][loops]))
            if number < len(columns):
                axes.set_title(format_loops(loops), loc="center", fontweight="normal")
            if number % len(columns) == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def main(table: pd.DataFrame, keys: Any) -> None:
    print(f"picture: {style.save(draw(table, keys.protocol), keys.out)[0]}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out="samples.png", protocol=None)
