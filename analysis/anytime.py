"""Quality against loops spent: one curve an arm, unique-layer arms as level lines, and the table.

    python analysis/anytime.py out=FIGURE.png [protocol=ID] ROWS [ROWS …]

ROWS are run folders or .jsonl files of rows. Arms are told apart by name; over seeds the mean is
drawn with its 95 % t interval (bootstrap is too narrow at three seeds). Loop schedules and halting are
arms of their own, at the mean loops that they spent. Writes FIGURE.png and .pdf.
"""

from itertools import cycle
from os.path import commonprefix
from pathlib import Path

import command
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from scipy import stats

from eltlab import results
from eltlab.errors import UserError

METRICS = ("fid", "fd_classifier")  # drawn is the first that the rows have
# Okabe and Ito's colours: told apart by every kind of colour vision.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]


def interval(values: pd.Series) -> float:
    """Half the width of the 95 % t interval of the mean; NaN below two values."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def summary(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One line an arm and loop count (or schedule): mean and interval over seeds, and what it costs."""
    constant = table["loop_schedule"] == "constant"
    halted = table["loop_schedule"].str.contains("halting")
    arm = table["name"].where(constant, table["name"] + " " + table["loop_schedule"])
    table = table.assign(
        arm=arm.where(~halted, table["name"] + " halting"),
        asked=table["loops"].astype(str).where(constant, table["loop_schedule"]),
    )
    # Sampling seeds of one training seed are no independent runs: they are averaged first.
    keys = ["arm", "asked"]
    same = ["unique_layers", "loops_train", "params_total", "images_seen", "train_flops_total"]
    means = [metric, "accuracy", "loops", "macs_per_sample"]
    how: dict[str, str] = dict.fromkeys(means, "mean") | dict.fromkeys(same, "first")
    seeds = table.groupby([*keys, "seed"], sort=False).agg(how).reset_index()
    lines = seeds.groupby(keys, sort=False).agg(
        loops=("loops", "mean"),
        split=("unique_layers", "first"),
        loops_train=("loops_train", "first"),
        params=("params_total", "first"),
        macs_per_sample=("macs_per_sample", "mean"),
        images=("images_seen", "first"),
        train_flops=("train_flops_total", "first"),
        seeds=("seed", "nunique"),
        **{metric: (metric, "mean")},
        plus_minus=(metric, interval),
        accuracy=("accuracy", "mean"),
    )
    lines = lines.reset_index()
    lines["arm"] = short(list(lines["arm"]))
    lines["split"] = [
        f"{layers}N x {loops}L"
        for layers, loops in zip(lines.split, lines.loops_train, strict=True)
    ]
    return lines.drop(columns="asked")


def short(names: list[str]) -> list[str]:
    """The names without the words ("/" and "-" end one) that all of them begin with."""
    shared = commonprefix(sorted(set(names))) if len(set(names)) > 1 else ""  # noqa: RUF071
    cut = max(shared.rfind("/"), shared.rfind("-")) + 1
    return [name[cut:] for name in names]


def draw(lines: pd.DataFrame, table: pd.DataFrame, metric: str, out: Path) -> None:
    """The figure: log quality over loops; protocol, sample count and seeds in the caption."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    widest = lines["loops"].max()
    crowded = lines["arm"].nunique() > 3
    for colour, (name, arm) in zip(cycle(COLOURS), lines.groupby("arm", sort=False)):
        if (arm["loops_train"] == 1).all():
            level = arm[metric].iloc[0]
            axes.axhline(level, color=colour, linestyle="--", linewidth=1.5)
            if arm["plus_minus"].notna().all():
                half = arm["plus_minus"].iloc[0]
                axes.axhspan(max(level - half, 1e-3), level + half, color=colour, alpha=0.12)
            axes.annotate(name, (1, level), color=colour, va="top", fontsize=9)
        else:
            arm = arm.sort_values("loops")
            axes.errorbar(
                arm["loops"],
                arm[metric],
                yerr=arm["plus_minus"],
                color=colour,
                marker="o",
                capsize=3,
                label=name,
            )
            if not crowded:
                last = arm.iloc[-1]
                place = (last["loops"], last[metric])
                axes.annotate(f"   {name}", place, color=colour, va="center", fontsize=9)
    if crowded:
        axes.legend(frameon=False, fontsize=9)
    if metric == "fd_classifier":
        draw_floor(axes, table["fd_halves"].mean())
    axes.set(yscale="log", xlabel="loops at inference", ylabel=f"{metric} (lower is better)")
    axes.set_xticks(sorted(table.loc[table["loop_schedule"] == "constant", "loops"].unique()))
    axes.set_xlim(0.8, widest * 1.35)
    axes.spines[["top", "right"]].set_visible(False)
    first = table.iloc[0]
    axes.set_title(
        f"{first['data']}, {first['objective']}, {int(first['samples'])} samples, "
        f"{int(lines['seeds'].max())} seed(s), protocol {first['protocol']}",
        fontsize=9,
        loc="left",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=160)
    figure.savefig(out.with_suffix(".pdf"), metadata={"CreationDate": None})


def draw_floor(axes: plt.Axes, floor: float) -> None:
    axes.axhline(floor, color="grey", linestyle=":", linewidth=1)
    axes.annotate(
        "two halves of the real data",
        (1, floor),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=8,
        color="grey",
    )


def main(paths: list[str], out: Path, protocol: str | None) -> None:
    table = results.comparable(results.load(*paths), protocol)
    metric = next((name for name in METRICS if table[name].notna().any()), None)
    if metric is None:
        raise UserError(f"the rows have none of {', '.join(METRICS)}; evaluate the runs first")
    lines = summary(table, metric)
    columns = lines.dropna(axis="columns", how="all")
    print(columns.to_string(index=False, formatters=FORMATS, na_rep=""))
    draw(lines, table, metric, out)
    print(f"figure: {out}")


FORMATS = {
    "loops": "{:.3g}".format,
    "params": "{:,.0f}".format,
    "macs_per_sample": "{:,.0f}".format,
    "images": "{:,.0f}".format,
    "train_flops": "{:.3g}".format,
    **dict.fromkeys(METRICS, "{:,.2f}".format),
    "plus_minus": "{:,.2f}".format,
    "accuracy": "{:.3f}".format,
}

if __name__ == "__main__":
    command.run(main, str(__doc__))
