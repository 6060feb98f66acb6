"""One line per arm of a study: its size, its cost and a metric at each loop count."""

from typing import TYPE_CHECKING

from eltlab.analysis.metrics import HELD_OUT, choose_metric, measured, why_no_loss
from eltlab.common.text import format_si, format_table

if TYPE_CHECKING:
    from pandas import DataFrame


def arm_lines(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """The lines of the table: a title that names the metric, headings, and one line per arm.

    If no row with a constant loop count has the metric, the default one is shown instead (`choose_metric`).
    Different losses have no table, only a line that says so.
    """
    constant = rows[rows["loop_schedule"] == "constant"]
    mixed = why_no_loss(constant) if metric == HELD_OUT and HELD_OUT in measured(constant) else None
    if mixed is not None and len(measured(constant)) == 1:
        return [f"no table of {HELD_OUT}: {mixed}"]
    if mixed is not None or metric not in measured(constant, (metric,)):
        metric = choose_metric(constant)
    title = f"{metric} at each loop count, mean over seeds"
    return [title, *format_table(arm_rows(rows, study, metric))]


def arm_rows(rows: "DataFrame", study: str, metric: str) -> list[list[str]]:
    """The cells of the table, headings first, from the rows with a constant loop count.

    An arm measured at several settings, such as values of guidance, has a line for each: nothing is chosen.
    """
    from eltlab.analysis.chosen_settings import settings_as_arms  # loads pandas

    rows = settings_as_arms(rows[rows["loop_schedule"] == "constant"])
    counts = sorted(rows["loops"].unique())
    titles = ["arm", "seeds", "layers x loops", "parameters", "training FLOPs"]
    table = [[*titles, *(f"at {count:g}" for count in counts)]]
    for name, group in rows.groupby("name", sort=True):
        first = group.iloc[0]
        means = group.groupby("loops")[metric].mean().dropna()
        table.append(
            [
                str(name).removeprefix(f"{study}/"),
                str(group["seed"].nunique()),
                f"{first['unique_layers']:.0f} x {first['loops_train']:.0f}",
                format_si(first["params_total"]),
                format_si(first["train_flops_total"]),
                *(f"{means[count]:.4g}" if count in means else "" for count in counts),
            ]
        )
    return table
