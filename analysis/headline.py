"""The headline table: each arm at the loop count it was trained for, with the ratio to its unique-layer twin.

    python -m eltlab.analysis.headline [out=headline.md] [metric=fid] [protocol=ID] [ROWS …]
    python -m eltlab.analysis.headline into=README.md figure=docs/anytime_diffusion.png ROWS

Prints the table; out= also writes it as Markdown (.md) or CSV (.csv). into= instead writes it, with the
any-time figure, between the markers <!-- headline --> of a Markdown file.
"""

from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eltlab.analysis import anytime, command, style
from eltlab.analysis.points import (
    UNIQUE,
    at_trained_loops,
    caption,
    choose_metric,
    format_counts,
    nearly_equal,
    points,
    seed_points,
)
from eltlab.analysis.table_files import format_markdown, replace_block, save_table
from eltlab.common.errors import UserError
from eltlab.common.text import format_si, format_table


def headline(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One line per arm at the loop count it was trained for: the columns of `points`, and

    twin: the name of the unique-layer arm with the same data, objective, width and depth, trained for as
    many images or FLOPs (within 5 %); None unless there is exactly one. ratio: the arm's distance divided
    by its twin's, from means over the seeds that both have.
    """
    lines = points(table, metric, protocol)
    metric = choose_metric(lines, metric)
    own = at_trained_loops(lines).reset_index(drop=True)
    if own.empty:
        raise UserError(
            "no arm was measured at the loop count it was trained for; run python -m eltlab.evaluate run=DIR"
        )
    seeds = at_trained_loops(seed_points(table, metric, protocol)).pivot(
        index="seed", columns="arm", values=metric
    )
    twins = [find_twin(line, own) for line in own.itertuples()]
    ratios = [ratio_of_means(seeds, arm, twin) for arm, twin in zip(own["arm"], twins, strict=True)]
    return own.assign(twin=pd.Series(twins, dtype=object), ratio=ratios)


def find_twin(line: Any, lines: pd.DataFrame) -> str | None:
    """The unique-layer arm that matches the line; None unless exactly one does, or if the line is one."""
    if line.kind == UNIQUE:
        return None
    found = lines[lines["kind"] == UNIQUE]
    for key in ("data", "objective", "width", "depth"):
        found = found[found[key] == getattr(line, key)]
    matched = nearly_equal(found["images_seen"], line.images_seen) | nearly_equal(
        found["train_flops_total"], line.train_flops_total
    )
    found = found[matched]
    return str(found["arm"].iloc[0]) if len(found) == 1 else None


def ratio_of_means(seeds: pd.DataFrame, arm: str, twin: str | None) -> float:
    """The mean of arm divided by the mean of its twin, over the seeds that both have; NaN without a twin."""
    if twin is None:
        return float("nan")
    both = seeds[[arm, twin]].dropna()
    return float(both[arm].mean() / both[twin].mean())


def headline_rows(lines: pd.DataFrame, metric: str) -> list[list[str]]:
    """The cells of the table, headings first: for the terminal, the README and the report page."""
    titles = ["arm", "layers x loops", "parameters", "MACs per sample", "training FLOPs"]
    shape = format_counts(lines["unique_layers"]) + " x " + format_counts(lines["loops_train"])
    rows = [[*titles, metric, "÷ twin", "seeds"]]
    for name, line in zip(shape, lines.itertuples(), strict=True):
        costs = (line.params_total, line.macs_per_sample, line.train_flops_total)
        ratio = "" if line.ratio != line.ratio else f"{line.ratio:.2f}"
        quality = format_quality(getattr(line, metric), line.plus_minus)
        rows.append([line.arm, name, *map(format_si, costs), quality, ratio, str(line.seeds)])
    return rows


def format_quality(mean: float, half: float) -> str:
    """The mean and half its interval, with more digits for small distances such as KID."""
    digits = 2 if abs(mean) >= 1 else 4
    interval = f"± {half:,.{digits}f}" if np.isfinite(half) else "(no interval)"
    return f"{mean:,.{digits}f} {interval}"


def markdown_block(table: pd.DataFrame, keys: Any) -> str:
    """The Markdown of the headline: figure, table and caption."""
    lines = headline(table, keys.metric, keys.protocol)
    metric = choose_metric(lines, keys.metric)
    rows = format_markdown(headline_rows(lines, metric))
    text = f"± is half the 95 % t interval over seeds. {caption(table, metric, keys.protocol)}."
    if keys.figure is None:
        return f"{rows}\n\n{text}"
    style.save(anytime.draw(table, metric, keys.protocol), keys.figure)
    place = relpath(keys.figure, Path(keys.into).parent)
    return f"![Quality against inference compute]({place})\n\n{rows}\n\n{text}"


def main(table: pd.DataFrame, keys: Any) -> None:
    if keys.into is not None:
        replace_block(Path(keys.into), "headline", markdown_block(table, keys))
        return
    lines = headline(table, keys.metric, keys.protocol)
    rows = headline_rows(lines, choose_metric(lines, keys.metric))
    print(*format_table(rows), sep="\n")
    print(caption(table, keys.metric, keys.protocol))
    if keys.out is not None:
        print(f"table: {save_table(rows, keys.out)}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out=None, metric=None, protocol=None, into=None, figure=None)
