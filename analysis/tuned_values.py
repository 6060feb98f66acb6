"""Keys that a study tuned for each arm: their values may differ between arms that are compared."""

import json
import re
from typing import NamedTuple

import pandas as pd

LISTED = 6  # arms, at most, whose values a caption names
# The column tuned_on, as a study writes it (studies/tuning.py).
TUNED_ON = re.compile(r".*tuning seeds? (?P<seeds>[\d, ]+), (?P<share>[\d.]+) of the budget; (?P<losses>.+)")


class Tuning(NamedTuple):
    """What an arm chose: the candidate with the lowest loss."""

    chosen: str
    losses: dict[str, str]  # of each candidate, as text
    seeds: int
    share: float  # of a trial's budget

    @property
    def trainings(self) -> int:
        return len(self.losses) * self.seeds

    @property
    def edges(self) -> list[str]:
        """The values chosen that are the smallest or largest candidate: the best may lie outside."""
        candidates = pd.DataFrame([split_values(each) for each in self.losses])
        numbers = candidates.apply(pd.to_numeric, errors="coerce").dropna(axis="columns")
        found = split_values(self.chosen)
        return [
            f"{key}={found[str(key)]}"
            for key, values in numbers.items()
            if values.nunique() > 1 and float(found[str(key)]) in (values.min(), values.max())
        ]


def split_values(text: str) -> dict[str, str]:
    """The values by key of "optim.lr=0.001 batch_size=16"."""
    return dict(part.split("=") for part in text.split(" "))


def read_tuning(rows: pd.DataFrame) -> dict[str, Tuning]:
    """The tuning of each tuned arm. rows: with their arms (`points.name_arms`)."""
    if not tuned_keys(rows):
        return {}
    found = {}
    for line in rows.dropna(subset=["tuned"]).drop_duplicates("arm").itertuples():
        chosen = " ".join(f"{key}={value}" for key, value in json.loads(line.tuned).items())
        if match := TUNED_ON.fullmatch(line.tuned_on):
            losses = dict(part.split(": ") for part in match["losses"].split(", "))
            found[str(line.arm)] = Tuning(
                chosen, losses, match["seeds"].count(",") + 1, float(match["share"])
            )
    return found


def tuning_rows(rows: pd.DataFrame) -> list[list[str]]:
    """The loss of every candidate of each arm, the chosen one in bold; headings first."""
    arms = read_tuning(rows)
    candidates = list(dict.fromkeys(each for tuning in arms.values() for each in tuning.losses))
    lines = [["arm", *candidates]]
    for arm, tuning in arms.items():
        losses = [tuning.losses.get(each, "") for each in candidates]
        bold = [each == tuning.chosen for each in candidates]
        lines.append([arm, *(f"**{loss}**" if b else loss for loss, b in zip(losses, bold, strict=True))])
    return lines


def describe_edges(rows: pd.DataFrame) -> str:
    """The arms that chose the smallest or largest candidate, as a sentence; empty if none did."""
    found = [f"{arm} {', '.join(each.edges)}" for arm, each in read_tuning(rows).items() if each.edges]
    return f"At the edge of the candidates, so the best may lie outside: {'; '.join(found)}." if found else ""


def tuned_keys(rows: pd.DataFrame) -> set[str]:
    """The dotted keys that were tuned for the arm of any row (column `tuned`)."""
    return {key for text in rows.get("tuned", pd.Series()).dropna() for key in json.loads(text)}


def describe_tuned(rows: pd.DataFrame) -> str:
    """The tuned values of each arm, and on what they were chosen; empty if nothing was tuned.

    rows: with their arms (`points.name_arms`).
    """
    if not tuned_keys(rows):
        return ""
    arms = rows.dropna(subset=["tuned"]).drop_duplicates("arm")
    parts = [
        f"{arm} {', '.join(f'{key}={value}' for key, value in json.loads(text).items())}"
        for arm, text in zip(arms["arm"][:LISTED], arms["tuned"], strict=False)
    ]
    parts += [f"{len(arms) - LISTED} more arms"] if len(arms) > LISTED else []
    # What follows is the loss of every candidate.
    how = arms["tuned_on"].dropna().str.partition(";")[0].unique() if "tuned_on" in arms else []
    return f"tuned: {', '.join(parts)}" + (f" (chosen on {' or '.join(how)})" if len(how) else "")
