"""One line per arm of a study: its size, its cost and a metric at each loop count."""

from typing import TYPE_CHECKING

from eltlab.common.text import format_si, format_table

if TYPE_CHECKING:
    from pandas import DataFrame


def arm_lines(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """A title and a table with one line per arm; metrics are means over seeds.

    If no row has the metric, shows fd_classifier or else FID.
    """
    rows = rows[rows["loop_schedule"] == "constant"]
    if metric not in rows or rows[metric].isna().all():
        metric = "fd_classifier" if rows["fd_classifier"].notna().any() else "fid"
    counts = sorted(rows["loops"].unique())
    head = ["arm", "seeds", "layers x loops", "parameters", "training FLOPs"]
    text = [[*head, *(f"at {n:g}" for n in counts)]]
    for name, group in rows.groupby("name", sort=True):
        first = group.iloc[0]
        cells = []
        for count in counts:
            found = group.loc[group["loops"] == count, metric].dropna()
            cells.append(f"{found.mean():.4g}" if len(found) else "")
        layers = f"{first['unique_layers']:.0f} x {first['loops_train']:.0f}"
        size, flops = format_si(first["params_total"]), format_si(first["train_flops_total"])
        seeds = str(group["seed"].nunique())
        text.append([str(name).removeprefix(f"{study}/"), seeds, layers, size, flops, *cells])
    return [f"{metric} at each loop count, mean over seeds", *format_table(text)]
