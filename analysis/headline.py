"""The headline table: each arm at the loop count it was trained for, with the ratio to its unique-layer twin.

The default metric is the held-out loss. Only unbiased metrics have a ratio.

    python -m eltlab.analysis.headline [out=headline.md] [metric=fid] [protocol=ID] [ROWS …]

Prints the table; out= also writes it as Markdown (.md) or CSV (.csv).
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from eltlab.analysis import command
from eltlab.analysis.chosen_settings import arm_settings, choose_settings, reported_rows, why_unmatched
from eltlab.analysis.metrics import (
    HELD_OUT,
    SAMPLED,
    choose_metric,
    describe_plus_minus,
    format_quality,
    measured,
    why_no_ratio,
)
from eltlab.analysis.paired import ratio_intervals, why_no_logarithm
from eltlab.analysis.points import (
    at_trained_loops,
    caption,
    describe_metric,
    format_counts,
    name_arms,
    points,
    seed_points,
)
from eltlab.analysis.table_files import save_table
from eltlab.analysis.twins import find_twins, list_keys
from eltlab.common.errors import UserError
from eltlab.common.text import format_si, format_table


def headline(table: pd.DataFrame, metric: str | None = None, protocol: str | None = None) -> pd.DataFrame:
    """One line per arm at the loop count it was trained for: the columns of `points`, and

    twin: the name of its unique-layer twin (`twins.find_twins`), or None; ratio: the geometric mean over
    shared seeds of the arm's metric divided by its twin's; ratio_low and ratio_high: its 95 % t interval;
    shared: the number of its seeds; no_ratio: why an arm with loops has no ratio, or None. A biased metric
    has no ratios (`why_no_ratio`), and neither have arms at different settings that were not chosen
    (`why_unmatched`); lacks: the seeds that other arms have and this one lacks, as text.
    """
    rows, choices = choose_settings(table, protocol)
    rows = name_arms(rows)
    metric = choose_metric(rows, metric)
    lines = points(table, metric, protocol)
    own = at_trained_loops(lines).reset_index(drop=True)
    if own.empty:
        raise UserError(
            "no arm was measured at the loop count it was trained for; run python -m eltlab.evaluate run=DIR"
        )
    seeds = at_trained_loops(seed_points(table, metric, protocol))
    twins = find_twins(rows[rows[metric].notna()]).loc[own["arm"]].reset_index(drop=True)
    biased, settings = why_no_ratio(rows, metric), arm_settings(rows, choices, metric)
    found = []
    for arm, twin in zip(own["arm"], twins["twin"], strict=True):
        reason = biased or (why_unmatched(settings, [arm, twin]) if twin is not None else None)
        found.append(compare(seeds, metric, arm, twin, reason))
    compared = pd.DataFrame(found)
    own_seeds = seeds.groupby("arm")["seed"].agg(set)[own["arm"]]
    compared["lacks"] = [", ".join(map(str, sorted(set(seeds["seed"]) - each))) for each in own_seeds]
    compared["no_ratio"] = compared["no_ratio"].where(twins["twin"].notna(), twins["no_twin"])
    return pd.concat([own.assign(twin=twins["twin"]), compared], axis="columns")


class Comparison(NamedTuple):
    """An arm divided by its twin, with the 95 % t interval over shared seeds, or why there is no ratio."""

    ratio: float = float("nan")
    ratio_low: float = float("nan")
    ratio_high: float = float("nan")
    no_ratio: str | None = None
    shared: int = 0  # seeds of the ratio


def compare(seeds: pd.DataFrame, metric: str, arm: str, twin: str | None, reason: str | None) -> Comparison:
    """The ratio of an arm to its twin. seeds: from `seed_points`, at the trained loops."""
    if twin is None or reason is not None:
        return Comparison(no_ratio=reason)
    pair = seeds[seeds["arm"].isin([arm, twin])]
    pair = pair[pair.groupby("seed")["arm"].transform("nunique") == 2]
    if pair.empty:
        return Comparison(no_ratio=f"no seed is shared with {twin}")
    reasons = why_no_logarithm(pair, metric)
    if len(reasons):
        return Comparison(no_ratio=reasons.iloc[0])
    values = pair.pivot(index="seed", columns="arm", values=metric)
    logs = np.log(values[[arm]]).sub(np.log(values[twin]), axis="index")
    return Comparison(*ratio_intervals(logs).iloc[0])._replace(shared=len(logs))


def headline_rows(
    table: pd.DataFrame, lines: pd.DataFrame, metric: str, protocol: str | None = None
) -> list[list[str]]:
    """The cells of the table, headings first: for the terminal, the README and the report page.

    lines: from `headline`. With the held-out loss, an unbiased distance of the samples is shown as well, if
    the rows have one. There is no column of ratios if no arm has one.
    """
    shape = format_counts(lines["unique_layers"]) + " x " + format_counts(lines["loops_train"])
    columns = {
        "arm": lines["arm"],
        "layers x loops": shape,
        "parameters": lines["params_total"].map(format_si),
        "MACs per sample": lines["macs_per_sample"].map(format_si),
        "training FLOPs": lines["train_flops_total"].map(format_si),
        metric: pd.Series(format_cells(lines, metric)),
    }
    distance = second_metric(reported_rows(table, protocol), metric)
    if distance is not None:
        own = at_trained_loops(points(table, distance, protocol))
        cells = dict(zip(own["arm"], format_cells(own, distance), strict=True))
        columns[distance] = lines["arm"].map(cells).astype(object).fillna("")
    if lines["ratio"].notna().any():
        columns["÷ twin"] = pd.Series([format_ratio(line) for line in lines.itertuples()])
    columns["seeds"] = lines["seeds"].map(str)
    return [list(columns), *(list(cells) for cells in zip(*columns.values(), strict=True))]


def second_metric(rows: pd.DataFrame, metric: str) -> str | None:
    """The distance of the samples that is shown next to the held-out loss, if the rows have one."""
    found = measured(rows, SAMPLED) if metric == HELD_OUT else []
    return found[0] if found else None


def headline_caption(table: pd.DataFrame, metric: str, protocol: str | None = None) -> str:
    """The caption, with the samples and settings of the distance next to the held-out loss."""
    text = caption(table, metric, protocol)
    rows, choices = choose_settings(table, protocol)
    distance = second_metric(rows, metric)
    return text if distance is None else f"{text}; {describe_metric(name_arms(rows), choices, distance)}"


def format_cells(lines: pd.DataFrame, metric: str) -> list[str]:
    numbers = zip(lines[metric], lines["plus_minus"], lines["standard_error"], strict=True)
    return [format_quality(*line) for line in numbers]


def format_ratio(line: Any) -> str:
    """The ratio to the twin with its interval, and its seeds if the arm has more; empty without a ratio."""
    if not np.isfinite(line.ratio):
        return ""
    interval = f"{line.ratio_low:.2f} to {line.ratio_high:.2f}" if np.isfinite(line.ratio_low) else None
    fewer = f"; {line.shared} shared seeds" if 1 < line.shared < line.seeds else ""
    return f"{line.ratio:.2f} ({interval or 'no interval: one seed'}{fewer})"


def headline_notes(lines: pd.DataFrame) -> str:
    """What the cells mean, and why ratios are missing."""
    notes = [describe_plus_minus(lines)]
    if lines["ratio"].notna().any():
        notes.append(
            "÷ twin is the ratio to the unique-layer twin with its 95 % t interval over shared seeds"
        )
    lacking = [f"{line.arm} lacks {line.lacks}" for line in lines.itertuples() if line.lacks]
    notes += [f"Of the seeds that other arms have, {list_keys(lacking)}"] if lacking else []
    missing = lines.dropna(subset=["no_ratio"]).groupby("no_ratio", sort=False)["arm"]
    reasons = [f"{', '.join(arms)}: {reason}" for reason, arms in missing]
    return ". ".join([*notes, *(f"No ÷ twin of {reason}" for reason in reasons)])


def main(table: pd.DataFrame, keys: Any) -> None:
    lines = headline(table, keys.metric, keys.protocol)
    metric = choose_metric(lines, keys.metric)
    rows = headline_rows(table, lines, metric, keys.protocol)
    print(*format_table(rows), sep="\n")
    print(headline_notes(lines), headline_caption(table, metric, keys.protocol), sep=". ")
    if keys.out is not None:
        print(f"table: {save_table(rows, keys.out)}")


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__), out=None, metric=None, protocol=None)
