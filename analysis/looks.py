"""What arms look like: one colour and marker for each arm of a table, the same in all its figures.

If a table has several kinds of arms, hue and marker show the kind. Within a kind, the shade shows what varies
among its arms (loops, unique layers, width or the rest of the name), in ascending order from dark to light. A
second thing that varies is the filling of the marker. If all arms are of one kind, what varies has the whole
palette and all markers. Arms that share a marker differ in lightness: figures can be read in greyscale and by
colour-blind readers.
"""

from itertools import combinations
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, to_hex

from eltlab.analysis.chosen_settings import reported_rows
from eltlab.analysis.points import KINDS, UNIQUE, VANILLA, arm_kinds, name_arms
from eltlab.analysis.text_values import natural_key


class Look(NamedTuple):
    colour: str
    marker: str
    fill: str = "full"  # Matplotlib's fillstyle

    def line(self, **more: Any) -> dict[str, Any]:
        """The keywords of a line with these marks."""
        own = {"color": self.colour, "marker": self.marker, "fillstyle": self.fill}
        return {**own, "markerfacecoloralt": "white", **more}


class Looks(NamedTuple):
    arms: dict[str, Look]
    kinds: dict[str, str]  # the colour of what belongs to a whole kind, such as its front


class Family(NamedTuple):
    """The look of a kind with one arm, and the ends of its shades."""

    colour: str
    marker: str
    dark: str
    light: str


# Colours of Okabe and Ito, which are safe for colour-blind readers, and dark and light ones of the same hue.
FAMILIES = {
    UNIQUE: Family("#000000", "s", "#000000", "#A3A3A3"),
    VANILLA: Family("#D55E00", "^", "#5A1500", "#F2A25C"),
    KINDS["ilsd"]: Family("#0072B2", "o", "#08204F", "#62B6DD"),
    KINDS["deep"]: Family("#009E73", "D", "#003D2B", "#83C795"),
    KINDS["random_depth"]: Family("#CC79A7", "v", "#4A1442", "#E397C1"),
}
OTHER = Family("#E69F00", "P", "#5C3D00", "#E3B23C")  # the user's own supervision
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]
FILLS = ["full", "bottom", "left", "top", "right"]
SHADES = 5  # more of one hue cannot be told apart
NEUTRAL = "#333333"  # joins arms that have different hues


def arm_looks(table: pd.DataFrame, protocol: str | None = None) -> Looks:
    """The look of each arm of the reported rows, by its name in `points.name_arms`.

    Looks are distinct for 8 · 10 arms in a table of one kind, else for 5 · 5 arms of each kind; further arms
    repeat them.
    """
    rows = name_arms(reported_rows(table, protocol))
    return looks_of(rows.assign(kind=arm_kinds(rows)).drop_duplicates("arm"))


def looks_of(arms: pd.DataFrame) -> Looks:
    """The looks of these arms, one line each: columns arm, kind, loops_train, unique_layers and width."""
    groups = dict(list(arms.groupby("kind", sort=False)))
    found: dict[str, Look] = {}
    for kind, group in groups.items():
        group = group.iloc[sorted(range(len(group)), key=lambda n: natural_key(group["arm"].iloc[n]))]
        looks = [base_look(kind)] if len(group) == 1 else look_apart(group, kind if len(groups) > 1 else None)
        found |= dict(zip(group["arm"], looks, strict=True))
    alone = len(groups) == 1 and len(found) > 1
    kinds = {str(kind): NEUTRAL if alone else base_look(kind).colour for kind in groups}
    return Looks({arm: found[arm] for arm in arms["arm"]}, kinds)


def base_look(kind: str) -> Look:
    """The look of the only arm of a kind."""
    return Look(*FAMILIES.get(kind, OTHER)[:2])


def look_apart(arms: pd.DataFrame, kind: str | None) -> list[Look]:
    """The looks of several arms of one kind; kind: None if the table has no other."""
    if kind is not None:
        family = FAMILIES.get(kind, OTHER)
        shade, fill, _ = split_factors(arms, SHADES, len(FILLS))
        colours = ramp(max(shade) + 1, list(dict.fromkeys([family.dark, family.colour, family.light])))
        return [Look(colours[a], family.marker, FILLS[b]) for a, b in zip(shade, fill, strict=True)]
    colour, marker, ordered = split_factors(arms, len(PALETTE), len(MARKERS))
    if max(marker) == 0:
        marker = colour  # both show the same
    colours = ramp(max(colour) + 1) if ordered or marker is not colour else PALETTE
    return [Look(colours[a], MARKERS[b]) for a, b in zip(colour, marker, strict=True)]


FACTORS = ["loops_train", "unique_layers", "width", "other"]


def split_factors(arms: pd.DataFrame, most: int, most_second: int) -> tuple[list[int], list[int], bool]:
    """Two numbers for each arm, below most and most_second, that together tell it from all others.

    Each is the rank of the arm in one or several of FACTORS, so that arms which agree in these share it. The
    second has as few values as possible. Also returns whether the first is a rank of counts and sizes alone.
    """
    arms = arms.assign(other=arms.groupby(FACTORS[:3], dropna=False).cumcount())
    varying = [name for name in FACTORS if arms[name].nunique(dropna=False) > 1]
    subsets = [list(each) for size in range(len(varying) + 1) for each in combinations(varying, size)]
    ranks = {tuple(names): rank_by(arms, names) for names in subsets}
    found: list[tuple[Any, ...]] = []
    for first, one in ranks.items():
        for second, two in ranks.items():
            enough = one.max() < most and two.max() < most_second
            if enough and not set(first) & set(second) and len(set(zip(one, two, strict=True))) == len(arms):
                found.append((two.max(), one.max(), len(found), first, second))
    if not found:
        place = np.arange(len(arms))
        return list(place % most), list(place // most % most_second), False
    *_, first, second = min(found)
    return list(ranks[first]), list(ranks[second]), "other" not in first


def rank_by(arms: pd.DataFrame, names: list[str]) -> np.ndarray:
    """The rank of each arm among the values of these columns, from 0."""
    if not names:
        return np.zeros(len(arms), dtype=int)
    return arms.groupby(names, dropna=False).ngroup().to_numpy()


def ramp(count: int, colours: list[str] | None = None) -> list[str]:
    """An ordered palette from dark to light, through these colours."""
    scale = LinearSegmentedColormap.from_list("", colours) if colours else matplotlib.colormaps["plasma"]
    end = 1.0 if colours else 0.8  # what follows is too light for a line on white
    return [to_hex(scale(end * place)) for place in np.linspace(0, 1, max(count, 2))[:count]]
