"""A study as the templates of pages see it: values, comparisons, tables, figures and facts of its rows.

A point is an arm at one loop count: "elastic@2". Without a count it is the arm at the loops it was trained
for, or at its only loop count or schedule. If all settings are shown, the arm has their values in its name:
"elastic steps 8@2".
"""

import math
from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eltlab.analysis import comparison, dynamics, equal_macs, study_facts, study_tables
from eltlab.analysis.anytime import describe_tax, elasticity_tax
from eltlab.analysis.chosen_settings import arm_settings, choose_settings, settings_as_arms, why_unmatched
from eltlab.analysis.comparable_rows import latest
from eltlab.analysis.comparison import Value
from eltlab.analysis.headline import compare, headline, headline_caption, headline_notes, headline_rows
from eltlab.analysis.metrics import HELD_OUT, INFINITE, UNBIASED, choose_metric, why_no_ratio
from eltlab.analysis.page import FIGURES
from eltlab.analysis.points import caption, name_arms
from eltlab.analysis.recipes import candidate_rows
from eltlab.analysis.step_curves import choose_distance
from eltlab.analysis.steps import front_rows
from eltlab.analysis.table_files import format_markdown
from eltlab.analysis.tuned_values import describe_edges, read_tuning, tuning_rows
from eltlab.common.errors import UserError, suggest
from eltlab.common.text import format_loops

# The figures that a page can show, by the module that draws them.
KINDS = {draw.__module__.rpartition(".")[2]: (alt, draw) for _, alt, draw in FIGURES}
AddFigure = Callable[[str, str, Callable[[], Figure]], str]


class MeasuredStudy:
    """The reported rows of one file of rows (`chosen_settings.reported_rows`).

    name: of the file, and so of its figures. names: what sentences call an arm. add_figure(file name,
    alternative text, function that draws it): registers a figure and returns the Markdown that shows it.
    all_settings: each setting of measuring is an arm (`chosen_settings.settings_as_arms`); none is chosen.
    """

    def __init__(
        self,
        name: str,
        loaded: pd.DataFrame,
        names: dict[str, str],
        add_figure: AddFigure,
        all_settings: bool = False,
    ) -> None:
        self.name, self.names, self.add_figure = name, names, add_figure
        self.measured, self.all_settings = loaded, all_settings
        self.loaded = settings_as_arms(loaded) if all_settings else loaded
        rows, self.choices = choose_settings(self.loaded)
        self.rows = name_arms(rows)
        self.metric = choose_metric(self.rows)

    # --- numbers ----------------------------------------------------------------------------------

    def value(self, point: str, column: str | None = None) -> Value:
        """The mean over seeds of a column (by default the study's metric). It prints with its interval."""
        lines = self.seed_lines(point, column)
        return comparison.mean_over_seeds(lines["value"], lines["standard_error"].mean())

    def seeds(self, point: str, column: str | None = None) -> pd.Series:
        """The values of a column by training seed."""
        return self.seed_lines(point, column)["value"]

    def seed_lines(self, point: str, column: str | None = None) -> pd.DataFrame:
        """value and standard_error by seed; several sampling seeds of one training seed are averaged."""
        column, rows = column or self.metric, self.find(point)
        if column not in rows or rows[column].isna().all():
            raise UserError(f"{point} has no {column}")
        errors = rows.get(f"{column}_se", np.nan)
        lines = pd.DataFrame({"value": rows[column], "standard_error": errors, "seed": rows["seed"]})
        return lines.dropna(subset=["value"]).groupby("seed").mean()

    def find(self, point: str) -> pd.DataFrame:
        """The rows of a point."""
        arm, _, count = point.partition("@")
        counts = {requested: rows for (name, requested), rows in self.points.items() if name == arm}
        if not counts:
            raise UserError(f"{arm}: {suggest(arm, list(self.rows['arm'].unique()), 'arms')}")
        first = next(iter(counts))
        trained = f"{counts[first]['loops_train'].iloc[0]:g}"
        count = count or (first if len(counts) == 1 else trained)
        if count not in counts:
            raise UserError(f"{arm}@{count}: {suggest(count, list(counts), 'loop counts')}")
        return counts[count]

    @cached_property
    def points(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The rows of each arm and loop count or schedule, without the configuration."""
        known = self.rows.loc[:, ~self.rows.columns.str.startswith("cfg.")]
        return dict(iter(known.groupby(["arm", "requested"], sort=False)))

    def ratio(self, one: str, other: str, column: str | None = None) -> Value:
        """1.053 (1.041 to 1.066): paired over shared seeds. Raises UserError if there is none."""
        column = column or self.metric
        pair = {point: self.seed_lines(point, column).reset_index() for point in (one, other)}
        reason = why_no_ratio(self.rows, column)
        if not self.all_settings:  # then a point names its settings, and the comparison is about them
            settings = arm_settings(self.rows, self.choices, column)
            reason = reason or why_unmatched(settings, {point.partition("@")[0] for point in (one, other)})
        lines = [
            each.rename(columns={"value": column}).assign(arm=point, requested="")
            for point, each in pair.items()
        ]
        found = compare(pd.concat(lines), column, one, other, reason)
        if found.no_ratio is not None:
            raise UserError(f"{one} ÷ {other}: {found.no_ratio}")
        return comparison.with_interval("{:.3f}", *found[:3], found.shared)

    def difference(self, one: str, other: str, column: str | None = None) -> Value:
        """+3.20 (+1.10 to +5.30): paired over shared seeds. Raises UserError if its bias is not common."""
        column = column or self.metric
        if column not in (*UNBIASED, *INFINITE):
            raise UserError(f"{one} − {other}: {why_no_ratio(self.rows, column)}")
        found = comparison.mean_difference(self.seeds(one, column), self.seeds(other, column))
        if not found.seeds:
            raise UserError(f"{one} − {other}: no seed is shared")
        return found

    def compare(self, one: str, other: str, column: str | None = None) -> str:
        """Who is ahead and by how much, or that the rows cannot tell: a clause without a full stop."""
        column = column or self.metric
        by_ratio = column in UNBIASED
        found = (self.ratio if by_ratio else self.difference)(one, other, column)
        return comparison.in_words(self.label(one), self.label(other), column, found, int(by_ratio))

    def label(self, point: str) -> str:
        """What a sentence calls a point."""
        arm, _, count = point.partition("@")
        name = self.names.get(arm, arm)
        if not count:
            return name
        return f"{name} at {format_loops(int(count)) if count.isdigit() else count}"

    @property
    def tax(self) -> str:
        """The elasticity tax of each elastic arm, with its interval."""
        found = elasticity_tax(self.loaded)
        if found.empty:
            raise UserError(f"{self.name} has no elasticity tax: python -m eltlab.analysis.anytime says why")
        return "; ".join(describe_tax(line) for line in found.itertuples())

    @property
    def updates(self) -> pd.Series:
        """The relative update by arm, loops of the pass, loop and sampling step (dynamics.csv)."""
        keys = ["arm", "loops", "loop", "step"]
        return dynamics.relative_updates(self.loaded).set_index(keys)["update"].sort_index()

    def at_equal_macs(self, curve: str, baseline: str, steps: int | None = None) -> Value:
        """How far a curve over steps is above another at equal MACs per sample (`equal_macs.difference`)."""
        return equal_macs.difference(self.measured, curve, baseline, steps=steps)

    def compare_at_equal_macs(self, curve: str, baseline: str) -> str:
        """Which of two curves over steps is ahead at equal MACs per sample: a clause without a full stop."""
        found, metric = self.at_equal_macs(curve, baseline), choose_distance(self.measured)
        return comparison.in_words(self.label(curve), self.label(baseline), metric, found, 0)

    # --- tables, figures, facts -------------------------------------------------------------------

    def table(self, *arms: str, columns: list[str] | None = None) -> str:
        """One line per arm and loop count, with every unbiased metric that the rows have."""
        return format_markdown(study_tables.point_rows(self.choose(arms), columns))

    def grid(self, *arms: str, column: str | None = None) -> str:
        """One line per arm, with its costs and one metric at each loop count."""
        return format_markdown(study_tables.grid_rows(self.choose(arms), column or self.metric))

    def mean_over_exits(self, arm: str) -> Value:
        """The held-out loss of an arm averaged over its exits up to the trained one, mean over seeds."""
        return comparison.mean_over_seeds(study_tables.exit_losses(self.choose((arm,)))["mean"])

    def exits(self, *arms: str) -> str:
        """One line per arm: its held-out loss averaged over the exits, and at the full exit."""
        return format_markdown(study_tables.exit_rows(self.choose(arms)))

    def front(self) -> str:
        """The points over sampling steps and loops that no other point beats at as few MACs per sample."""
        return format_markdown(front_rows(self.measured))

    def equal_macs_table(self, baseline: str | None = None) -> str:
        """All curves next to one at equal MACs per sample, a column per number of steps of the baseline."""
        return format_markdown(equal_macs.difference_rows(self.measured, baseline=baseline))

    def choose(self, arms: tuple[str, ...]) -> pd.DataFrame:
        """The rows of these arms, or of all."""
        known = list(self.rows["arm"].unique())
        for arm in (arm for arm in arms if arm not in known):
            raise UserError(f"{arm}: {suggest(arm, known, 'arms')}")
        return self.rows[self.rows["arm"].isin(arms or known)]

    def headline(self) -> str:
        """Each arm at the loops it was trained for, with its ratio to the twin, and what the cells mean."""
        lines = headline(self.loaded)
        rows = format_markdown(headline_rows(self.loaded, lines, self.metric))
        return f"{rows}\n\n{headline_notes(lines)}. {headline_caption(self.loaded, self.metric)}."

    def figure(self, kind: str, alt: str | None = None, **options: str) -> str:
        """The Markdown of a figure. kind: a module that draws one; options: of its draw, such as metric=."""
        if kind not in KINDS:
            raise UserError(f"figure {kind}: {suggest(kind, list(KINDS), 'kinds')}")
        usual, draw = KINDS[kind]
        file = "-".join([self.name, kind, *options.values()]) + ".png"
        table = self.measured if kind == "steps" else self.loaded  # it compares the settings itself
        return self.add_figure(file, alt or usual, partial(draw, table, **options))

    @property
    def title(self) -> str:
        """What the arms learn: digits, diffusion."""
        first = self.rows.iloc[0]
        return f"{first['data']}, {first['objective']}"

    @property
    def protocol(self) -> str:
        """What was trained and how it was measured, as a Markdown list."""
        return study_facts.describe_protocol(self.rows)

    @property
    def caption(self) -> str:
        return caption(self.loaded)

    @property
    def tuning(self) -> str:
        """The held-out loss of every candidate of each arm, the chosen one in bold, and who chose an edge."""
        rows = self.trained
        return f"{format_markdown(tuning_rows(rows))}\n\n{describe_edges(rows)}".strip()

    @cached_property
    def trained(self) -> pd.DataFrame:
        """One row per training, at a constant loop count if it has one: an arm is what was trained."""
        rows = latest(self.measured[self.measured["kind"] == "eval"])
        scheduled = rows["loop_schedule"] != "constant"
        return name_arms(rows.loc[scheduled.sort_values(kind="stable").index].drop_duplicates("run"))

    def tuning_loss(self, arm: str, candidate: str) -> float:
        """The held-out loss of a candidate, such as optim.lr=0.002, in the tuning runs of an arm;
        infinite if they diverged."""
        tuned = read_tuning(self.trained)
        if arm not in tuned or candidate not in tuned[arm].losses:
            raise UserError(f"{arm}: {candidate} was no candidate")
        loss = tuned[arm].losses[candidate]
        return math.inf if loss == "diverged" else float(loss)

    @property
    def candidates(self) -> str:
        """Of a study of recipes: the held-out loss of every pair of batch size and learning rate."""
        return format_markdown(candidate_rows(self.rows))

    @property
    def cost(self) -> str:
        """The number of trainings, their FLOPs and hours."""
        return study_facts.describe_cost(self.trained)


def add_final_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Rows from before the column heldout_loss, with that of validation.csv: the loss of each exit at the
    end of training, mean over levels."""
    runs = dynamics.select_runs(table)
    lines = dynamics.read_run_files(runs, "validation.csv")
    lines = lines[lines["images"] == lines.groupby(["arm", "seed"])["images"].transform("max")]
    lines = lines.merge(runs[["arm", "seed", "run"]], on=["arm", "seed"])
    losses = lines.groupby(["run", "exit"])["loss"].mean()
    found = [losses.get(each, np.nan) for each in zip(table["run"], table["loops"], strict=True)]
    return table.assign(**{HELD_OUT: found})
