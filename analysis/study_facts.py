"""What a study trained, how it was measured and what that cost, in words made of its rows."""

import json
from typing import Any

import pandas as pd

from eltlab.analysis.text_values import as_text
from eltlab.analysis.tuned_values import read_tuning
from eltlab.common.text import format_duration, format_si
from eltlab.config.identity import defines


def describe_protocol(rows: pd.DataFrame) -> str:
    """A Markdown list: data, budget, seeds, in which keys the arms differ, the protocol and the code.

    rows: reported rows, of one protocol.
    """
    first = rows.iloc[0]
    network = f"width {format_values(rows['width'])}, {format_values(rows['depth'])} layers per pass"
    images, flops = format_range(rows["images_seen"], "{:,.0f}".format), rows["train_flops_total"]
    lines = [
        f"Trained: {first['data']}, {first['objective']}, {network}; {images} images and "
        f"{format_range(flops, format_si)} training FLOPs per training; seeds {format_values(rows['seed'])}",
        f"The arms differ in {', '.join(differing_keys(rows)) or 'nothing'}; all other keys that define a "
        "run are equal",
        f"Measured: {describe_measuring(rows)}; protocol {first['protocol']}",
        f"Code: {describe_code(rows)}",
    ]
    return "\n".join(f"- {line}." for line in lines)


def differing_keys(rows: pd.DataFrame) -> list[str]:
    """The keys that define a run and differ between the rows; those present on one side only are ignored."""
    keys = [name.removeprefix("cfg.") for name in rows if name.startswith("cfg.")]
    return [
        key
        for key in keys
        if defines(key) and key != "seed" and as_text(rows[f"cfg.{key}"].dropna()).nunique() > 1
    ]


def describe_measuring(rows: pd.DataFrame) -> str:
    """The parts of the protocol. What is studied (steps, guidance, loops) has columns of its own."""
    known: dict[str, Any] = json.loads(rows["protocol_text"].iloc[0])
    return ", ".join(f"{key.removeprefix('sampler.')} {value}" for key, value in known.items())


def describe_code(rows: pd.DataFrame) -> str:
    trained = ", ".join(map(str, rows["code"].dropna().unique()))
    measured = rows.get("evaluated_code", pd.Series(dtype=object)).dropna().unique()
    others = [str(each) for each in measured if each not in trained]
    return trained + (f"; measured by {', '.join(others)}" if others else "")


def describe_cost(rows: pd.DataFrame) -> str:
    """Trainings, seeds, FLOPs, and the hours that training took, without measuring; and what tuning added."""
    runs = rows.drop_duplicates("run")
    flops, seconds = runs["train_flops_total"].sum(), runs["train_seconds"].sum()
    return (
        f"{count(len(runs), 'training')} ({count(runs['name'].nunique(), 'arm')}, "
        f"{count(runs['seed'].nunique(), 'seed')}), {format_si(flops)} training FLOPs, "
        f"{format_duration(seconds)} of training on {' and '.join(runs['device'].dropna().unique())}"
        f"{describe_tuning_cost(rows)}"
    )


def describe_tuning_cost(rows: pd.DataFrame) -> str:
    """; before them 12 trainings of tuning, 23.43T FLOPs. Empty if nothing was tuned."""
    arms = read_tuning(rows)
    if not arms:
        return ""
    budgets = rows.groupby("arm")["train_flops_total"].mean()
    flops = sum(budgets[arm] * each.share * each.trainings for arm, each in arms.items())
    trainings = sum(each.trainings for each in arms.values())
    return f"; before them {count(trainings, 'training')} of tuning, {format_si(flops)} FLOPs"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def format_values(column: pd.Series) -> str:
    """0, 1, 2 or 64: the values that occur, in order."""
    return ", ".join(f"{value:g}" for value in sorted(column.unique()))


def format_range(column: pd.Series, form: Any) -> str:
    low, high = form(column.min()), form(column.max())
    return low if low == high else f"{low} to {high}"
