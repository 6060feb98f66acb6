"""The headline table: every arm at the loop count it was trained for, beside its unique-layer twin.

    python -m eltlab.analysis.headline [metric=fid] [protocol=ID] [ROWS …]
    python -m eltlab.analysis.headline into=README.md figure=docs/anytime_diffusion.png ROWS

Prints it, or writes it with the any-time figure between the markers <!-- headline --> of a Markdown file.
"""

from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eltlab.analysis import anytime, command, style
from eltlab.analysis.points import UNIQUE, caption, counts, full, points, quality_of
from eltlab.text import columns, si

NO_INTERVAL = "no interval"  # of one seed


def headline(
    table: pd.DataFrame, metric: str | None = None, protocol: str | None = None
) -> pd.DataFrame:
    """One line an arm at its own loop count: the columns of `points`, and

    twin: the name of the unique-layer arm of its width and depth (None where the rows have none, or
    several), and ratio: the arm's distance over its twin's, of means over seeds.
    """
    lines = full(points(table, metric, protocol)).reset_index(drop=True)
    return with_twins(lines, quality_of(lines, metric))


def with_twins(lines: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Lines of points with their twin and the ratio to it; a twin has none of its own."""
    unique = lines[(lines["kind"] == UNIQUE)]
    unique = unique[~unique.duplicated(["width", "depth"], keep=False)]
    known = unique.set_index(["width", "depth"])
    looped = lines["kind"] != UNIQUE
    keys = pd.MultiIndex.from_frame(lines[["width", "depth"]])
    twin = known["arm"].reindex(keys).to_numpy()
    distance = known[metric].reindex(keys).to_numpy(float)
    return lines.assign(
        twin=np.where(looped & pd.notna(twin), twin, None),
        ratio=np.where(looped, lines[metric] / distance, np.nan),
    )


def cells(lines: pd.DataFrame, metric: str) -> list[list[str]]:
    """The table as text, its headings first: what is printed, in the README and on the page."""
    titles = ["arm", "layers x loops", "parameters", "MACs a sample", "training FLOPs"]
    split = counts(lines["unique_layers"]) + " x " + counts(lines["loops_train"])
    rows = [[*titles, metric, "÷ twin", "seeds"]]
    for name, line in zip(split, lines.itertuples(), strict=True):
        costs = (line.params_total, line.macs_per_sample, line.train_flops_total)
        ratio = "" if line.ratio != line.ratio else f"{line.ratio:.2f}"
        quality = quality_text(getattr(line, metric), line.plus_minus)
        rows.append([line.arm, name, *map(si, costs), quality, ratio, str(line.seeds)])
    return rows


def quality_text(mean: float, half: float) -> str:
    return f"{mean:,.2f} ± {half:,.2f}" if np.isfinite(half) else f"{mean:,.2f} ({NO_INTERVAL})"


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def block(table: pd.DataFrame, asked: Any) -> str:
    """The Markdown of the headline: figure, table and what they are of."""
    lines = headline(table, asked.metric, asked.protocol)
    metric = quality_of(lines, asked.metric)
    rows = markdown(cells(lines, metric))
    said = f"± is half of a 95 % t interval over seeds. {caption(table, metric, asked.protocol)}."
    if asked.figure is None:
        return f"{rows}\n\n{said}"
    style.save(anytime.draw(table, metric, asked.protocol), asked.figure)
    place = relpath(asked.figure, Path(asked.into).parent)
    return f"![Quality against inference compute]({place})\n\n{rows}\n\n{said}"


def main(table: pd.DataFrame, asked: Any) -> None:
    if asked.into is not None:
        command.replace_block(Path(asked.into), "headline", block(table, asked))
        return
    lines = headline(table, asked.metric, asked.protocol)
    print(*columns(cells(lines, quality_of(lines, asked.metric))), sep="\n")
    print(caption(table, asked.metric, asked.protocol))


if __name__ == "__main__":
    command.run(main, str(__doc__), metric=None, protocol=None, into=None, figure=None)
