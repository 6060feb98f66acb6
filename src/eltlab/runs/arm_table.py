"""One line per arm of a study: its size, its cost and a metric at each loop count."""

from typing import TYPE_CHECKING

from eltlab.common.text import format_si, format_table

if TYPE_CHECKING:
    from pandas import DataFrame


def arms(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """One line an arm: its size and cost, and the metric at each loop count, mean over seeds."""
    rows = rows[rows["loop_schedule"] == "constant"]
    if metric not in rows or rows[metric].isna().all():
        metric = "fd_classifier" if rows["fd_classifier"].notna().any() else "fid"
    counts = sorted(rows["loops"].unique())
    text = [["arm", "seeds", "layers x loops", "parameters", "training FLOPs", *map(at, counts)]]
    for name, group in rows.groupby("name", sort=True):
        first = group.iloc[0]
        cells = []
        for count in counts:
            found = group.loc[group["loops"] == count, metric].dropna()
            cells.append(f"{found.mean():.4g}" if len(found) else "")
        split = f"{first['unique_layers']:.0f} x {first['loops_train']:.0f}"
        size, flops = format_si(first["params_total"]), format_si(first["train_flops_total"])
        seeds = str(group["seed"].nunique())
        text.append([str(name).removeprefix(f"{study}/"), seeds, split, size, flops, *cells])
    return [f"{metric} at each loop count, mean over seeds", *format_table(text)]


def at(loops: float) -> str:
    return f"at {loops:g}"
