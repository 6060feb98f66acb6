"""The report: one self-contained page with tables, figures and samples to slide through.

`render_page(table)` makes it. Each section shows the rows of one study and one protocol, so that numbers of
different protocols are never drawn or averaged together. Rows that settings were chosen by, those against
the training split, have no section of their own if all arms are reported against the test split.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure

from eltlab.analysis import (
    ablation,
    anytime,
    comparable_rows,
    dynamics,
    pareto,
    samples,
    scaling,
    steps,
    style,
)
from eltlab.analysis.chosen_settings import reported_rows, select_reported
from eltlab.analysis.headline import headline, headline_caption, headline_notes, headline_rows
from eltlab.analysis.metrics import choose_metric, format_quality
from eltlab.analysis.points import UNIQUE, has_constant_loops, name_arms, points
from eltlab.analysis.text_values import natural_key
from eltlab.common.errors import UserError
from eltlab.common.text import format_loops, format_si

# The figures of a section: title, alternative text and the function that draws it.
STEPS = ("Loops or steps", "Quality against MACs per sample over loops and sampling steps", steps.draw)
FIGURES: tuple[tuple[str, str, Callable[..., Figure]], ...] = (
    ("Quality against inference compute", "One curve per arm over its loop counts", anytime.draw),
    ("Scaling", "Quality against MACs per sample with power laws", scaling.draw),
    ("Pareto fronts", "Quality against each cost, with the front of each kind of arm", pareto.draw),
    ("Ablation", "Ratio of each arm to the baseline, with intervals", ablation.draw),
    ("Dynamics", "Relative update of each loop, and held-out loss of each exit", dynamics.draw),
    STEPS,
)


@dataclass
class Drawing:
    title: str
    alt: str
    source: str  # a data: URL


@dataclass
class Frame:
    """A picture of the slider: an arm's samples at one loop count."""

    loops: int
    name: str
    text: str
    source: str  # a data: URL


@dataclass
class Strip:
    """The pictures of one arm and of its twin."""

    arm: str
    frames: list[Frame]
    start: int  # the frame shown first: that of the trained loop count
    twin: Frame | None


@dataclass
class Section:
    title: str
    anchor: str
    caption: str = ""
    protocol: dict[str, Any] = field(default_factory=dict)
    headline: list[list[str]] = field(default_factory=list)
    notes: str = ""  # what the cells of the headline mean
    points: list[list[str]] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what cannot be shown, and why


def render_page(
    table: pd.DataFrame, source: str, on_section: Callable[[str], None] = lambda title: None
) -> str:
    """The page as HTML. Raises UserError if the table has no evaluations.

    source: names the origin of the rows. on_section: called with each section's title before it is made.
    """
    sections = []
    for number, (title, rows, protocol) in enumerate(split_sections(table)):
        on_section(title)
        sections.append(make_section(title, f"s{number}", rows, protocol))
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("page.html")
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return template.render(sections=sections, source=source, rows=len(table), now=now)


def split_sections(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """The title, rows and protocol of each section: one per study (or data and objective) and protocol.

    The rows are all of the study, because the settings of one protocol may be chosen by rows of another.
    """
    rows = table[table["kind"] == "eval"]
    if rows.empty:
        comparable_rows.comparable(table)  # raises UserError with the fix
    title = rows["study"].astype(object).fillna(rows["data"] + ", " + rows["objective"]).astype(str)
    groups = dict(list(rows.groupby(title)))
    found = []
    for name in sorted(groups, key=natural_key):
        reported = select_reported(comparable_rows.latest(groups[name]), None)
        names = name_protocols(reported.drop_duplicates("protocol"))
        for protocol, words in names.items():
            found.append((f"{name}: {words}" if words else name, groups[name], protocol))
    return found


def name_protocols(rows: pd.DataFrame) -> dict[str, str]:
    """What tells each protocol from the others, in words and in natural order; empty for a single one.

    rows: one of each protocol. Hashes are written only if nothing else differs.
    """
    texts = {row.protocol: json.loads(row.protocol_text) for row in rows.itertuples()}
    keys = list(dict.fromkeys(key for text in texts.values() for key in text))
    order = sorted(texts, key=lambda each: [natural_key(str(texts[each].get(key, ""))) for key in keys])
    found: dict[str, str] = {}
    for describe in (describe_short, describe_value):
        columns = {key: [describe(key, texts[each].get(key)) for each in order] for key in keys}
        words = pd.DataFrame(columns, index=order)
        differing = words.loc[:, words.nunique() > 1]
        found = dict(zip(order, map(", ".join, differing.to_numpy()), strict=True))
        if len(set(found.values())) == len(found):
            break
    return found


def describe_value(key: str, value: Any) -> str:
    """A value of a protocol in words: 1,000 samples, 64 steps, no clips, extractor inception."""
    name = key.removeprefix("sampler.").replace("_", " ")
    if value is None:
        return f"no {name}"
    return f"{value:,} {name}" if name in ("samples", "steps") else f"{name} {value}"


def describe_short(key: str, value: Any) -> str:
    """The same without hashes."""
    return re.sub(r"-[0-9a-f]{8,}\b", "", describe_value(key, value))


def make_section(title: str, anchor: str, rows: pd.DataFrame, protocol: str) -> Section:
    made = Section(title, anchor)
    try:
        shown = reported_rows(rows, protocol)
        metric = choose_metric(shown)
        made.caption = headline_caption(rows, metric, protocol)
        made.points = point_rows(points(rows, metric, protocol), metric)
    except UserError as error:
        made.missing.append(str(error))
        add_drawing(made, rows, protocol, *STEPS)  # several numbers of steps, and none to choose
        return made
    made.protocol = {"protocol": protocol, **json.loads(shown["protocol_text"].iloc[0])}
    made.missing += arms_without(shown, metric)
    with note_missing(made, "Headline"):
        lines = headline(rows, metric, protocol)
        made.headline = headline_rows(rows, lines, metric, protocol)
        made.notes = headline_notes(lines)
    for figure in FIGURES:
        add_drawing(made, rows, protocol, *figure)
    with note_missing(made, "Samples"):
        made.strips = make_strips(rows, metric, protocol)
    return made


def add_drawing(
    made: Section, rows: pd.DataFrame, protocol: str, name: str, alt: str, draw: Callable[..., Figure]
) -> None:
    with note_missing(made, name):
        image = style.render_svg(draw(rows, protocol=protocol))
        made.drawings.append(Drawing(name, alt, data_url(image, "svg+xml")))


@contextmanager
def note_missing(made: Section, what: str) -> Iterator[None]:
    """Lists what cannot be shown, with the reason, instead of failing."""
    try:
        yield
    except UserError as error:
        made.missing.append(f"{what}: {error}")


def arms_without(rows: pd.DataFrame, metric: str) -> list[str]:
    """The arms for which the metric was not measured."""
    arms = name_arms(rows).groupby("arm", sort=False)[metric].count()
    return [f"{arm}: no {metric}" for arm in arms.index[arms == 0]]


def point_rows(lines: pd.DataFrame, metric: str) -> list[list[str]]:
    """The cells of the table of all points, headings first."""
    rows = [["arm", "loops", "MACs per sample", metric, "seeds"]]
    for line in lines.itertuples():
        quality = format_quality(getattr(line, metric), line.plus_minus, line.standard_error)
        macs = format_si(line.macs_per_sample)
        rows.append([line.arm, f"{line.loops:.3g}", macs, quality, str(line.seeds)])
    return rows


def make_strips(rows: pd.DataFrame, metric: str, protocol: str) -> list[Strip]:
    """The samples of each looped arm, with those of its twin."""
    tiles = samples.find_tiles(rows, protocol)
    lines = points(rows, metric, protocol)
    lines = lines[has_constant_loops(lines)]
    twins = headline(rows, metric, protocol).set_index("arm")["twin"]
    found = []
    for arm, group in lines.groupby("arm", sort=False):
        measured = group.set_index("loops")
        counts = sorted(set(tiles.get(str(arm), {})) & {int(loops) for loops in measured.index})
        if not counts or group["kind"].iloc[0] == UNIQUE:
            continue
        frames = [make_frame(measured, loops, tiles[str(arm)][loops], metric) for loops in counts]
        trained = group["loops_train"].iloc[0]
        start = counts.index(trained) if trained in counts else len(counts) - 1
        twin = twins.get(arm)
        twin_frame = None
        if twin in tiles and 1 in tiles[twin]:
            own = lines[lines["arm"] == twin].set_index("loops")
            twin_frame = make_frame(own, 1, tiles[twin][1], metric)
        found.append(Strip(str(arm), frames, start, twin_frame))
    return found


def make_frame(lines: pd.DataFrame, loops: int, path: Path, metric: str) -> Frame:
    line = lines.loc[loops]
    name = format_loops(loops)
    if loops > line["loops_train"]:
        name += f" (trained for {line['loops_train']:g})"
    quality = format_quality(line[metric], line["plus_minus"], line["standard_error"])
    text = f"{metric} {quality}, {format_si(line['macs_per_sample'])} MACs per sample"
    return Frame(loops, name, text, data_url(path.read_bytes(), path.suffix[1:]))


def data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
