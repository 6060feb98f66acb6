"""Which rows may be compared: one protocol, one run per name and seed, one configuration per name."""

import json
import sys
from functools import cache
from typing import TYPE_CHECKING

from eltlab.common.errors import UserError
from eltlab.config.identity import defines

if TYPE_CHECKING:
    from pandas import DataFrame


def comparable(table: "DataFrame", protocol: str | None = None) -> "DataFrame":
    """The evaluations that can be compared: rows of one protocol, from the end of each run.

    Raises UserError if there are none, if protocols are mixed, if two runs share a name and a seed, or if
    runs of one name differ in more than their seeds.
    """
    evaluations = table[table["kind"] == "eval"]
    rows = evaluations if protocol is None else evaluations[evaluations["protocol"] == protocol]
    if rows.empty:
        known = ", ".join(evaluations["protocol"].dropna().unique())
        if known:
            raise UserError(f"protocol={protocol}: no row has it; choose one of {known}")
        raise UserError(
            f"no evaluations among {len(table)} rows; train with evaluate=true, or measure the runs with "
            "python -m eltlab.evaluate run=DIR"
        )
    one_protocol(rows)
    rows = latest(rows)
    report_sources(rows)
    for (name, seed), runs in rows.groupby(["name", "seed"])["run"].unique().items():
        if len(runs) > 1:
            raise UserError(
                f"name {name}, seed {seed} stands for {len(runs)} runs of different configurations "
                f"({', '.join(runs)}); give each arm a name= of its own, or name the folders to compare"
            )
    # Runs of one name must be seeds of one arm. Keys that only some rows have are ignored.
    keys = [name.removeprefix("cfg.") for name in rows.columns if name.startswith("cfg.")]
    for key in (key for key in keys if key != "seed" and defines(key)):
        values = rows[f"cfg.{key}"].map(str, na_action="ignore")
        if values.nunique() < 2:  # skips the slow groupby
            continue
        for name, found in values.groupby(rows["name"]):
            if found.nunique() > 1:
                raise UserError(
                    f"name {name} stands for runs of different {key} ({', '.join(found.dropna().unique())}); "
                    "give each arm a name= of its own, or name the folders to compare"
                )
    return rows


def one_protocol(table: "DataFrame") -> str:
    """The protocol id that all rows share. Raises UserError if there are several, naming two."""
    found = table[["protocol", "protocol_text"]].drop_duplicates("protocol")
    if len(found) == 1:
        return str(found["protocol"].iloc[0])
    if found.empty:
        raise UserError("no rows to compare; train and evaluate a run first")
    first, second = (json.loads(text) for text in found["protocol_text"].iloc[:2])
    names = " and ".join(found["protocol"].iloc[:2])
    differing = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    parts = ", ".join(f"{key} {first.get(key)} against {second.get(key)}" for key in differing)
    raise UserError(f"rows of protocols {names} cannot be compared: {parts}; choose one with protocol=ID")


def report_sources(rows: "DataFrame") -> None:
    """Prints which sources of eltlab trained and measured the rows, if there are several."""
    both = rows.reindex(columns=["source", "evaluated_source"]).astype(object).fillna("unknown")
    trained, measured = both["source"], both["evaluated_source"]
    sources = trained.where(trained == measured, trained + " measured by " + measured)
    if sources.nunique() > 1:
        counts = ", ".join(f"{source} ({count} rows)" for source, count in sources.value_counts().items())
        print_once(f"note: the rows are of different code (column source): {counts}")


@cache
def print_once(line: str) -> None:
    """Prints a line to stderr, unless this command has printed it before: a report has many tables."""
    print(line, file=sys.stderr)


def latest(rows: "DataFrame") -> "DataFrame":
    """The rows of each run that were measured after the most training images."""
    return rows[rows["images_seen"] == rows.groupby("run")["images_seen"].transform("max")]
