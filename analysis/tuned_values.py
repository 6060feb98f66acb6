"""Keys that a study tuned for each arm: their values may differ between arms that are compared."""

import json

import pandas as pd

LISTED = 6  # arms, at most, whose values a caption names


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
