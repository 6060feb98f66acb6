"""The performance tables of the README, from the rows of the benchmark.

    python -m eltlab.analysis.performance benchmarks/rows.jsonl

Prints them as Markdown. There is one line per width and split into layers x loops, with medians. Ratios
compare steps, or samples, of the same round.
"""

from typing import Any

import pandas as pd

from eltlab.analysis import command
from eltlab.analysis.table_files import format_markdown
from eltlab.common.errors import UserError

COLUMNS = (
    *("width, batch", "layers x loops", "step ÷ twin", "ILSD ÷ vanilla", "peak memory ÷ twin"),
    *("utilisation", "sampling ÷ twin (batch)", "at one loop ÷ twin (batch)"),
)


def format_benchmark(table: pd.DataFrame) -> str:
    """One table per device, from each width's latest call of bench that measured all columns."""
    rows = table[table["kind"] == "bench"].sort_values("created")
    calls = {}
    keys = ["device", "width", "call"]
    for (device, width, _), group in rows.groupby(keys, sort=False) if "call" in rows else ():
        if {"train", "sample"} <= set(group["measure"]) and "ilsd" in set(group["supervision"]):
            calls[device, width] = group
    if not calls:
        raise UserError("no call of bench measured both ILSD and sampling; run make bench")
    devices = dict.fromkeys(device for device, _ in calls)
    return "\n\n".join(
        format_device(str(name), [group for (device, _), group in calls.items() if device == name])
        for name in devices
    )


def format_device(device: str, calls: list[pd.DataFrame]) -> str:
    rows = [list(COLUMNS), *(row for call in calls for row in call_rows(call))]
    rates = " and ".join(f"{c['matmul_flops_per_second'].iloc[0] / 1e9:,.0f}" for c in calls)
    widths = " and ".join(f"{c['width'].iloc[0]:.0f}" for c in calls)
    return (
        f"Measured on {device}, {calls[0]['precision'].iloc[0]}. Utilisation is relative to one large matrix "
        f"product, timed in the same rounds: {rates} GFLOP/s (widths {widths}). Cells are medians; ratios of "
        "steps have their quartiles in brackets, and sampling ratios the batch size:\n\n"
        f"{format_markdown(rows)}"
    )


def call_rows(rows: pd.DataFrame) -> list[list[str]]:
    keys = ["measure", "supervision", "loops_train", "loops", "batch_size"]
    found = rows.set_index(keys).sort_index()
    train, sample = found.loc["train"], found.loc["sample"]
    twin = train.loc[("final", 1, 1)].iloc[0]
    lines = []
    for loops in sorted({index[1] for index in train.index} - {1}):
        vanilla = train.loc[("final", loops, loops)].iloc[0]
        ilsd = train.loc[("ilsd", loops, loops)].iloc[0]
        memory = vanilla["peak_memory_bytes"] / twin["peak_memory_bytes"]
        draws, short = (sample.loc[("final", loops, count)] for count in (loops, 1))
        lines.append(
            [
                f"{vanilla['width']:.0f}, {vanilla.name}",
                f"{vanilla['unique_layers']:.0f} x {loops}",
                format_ratio(vanilla, "ratio_to_twin"),
                format_ratio(ilsd, "ratio_to_vanilla"),
                f"{memory:.2f}",
                f"{vanilla['mfu']:.0%}",
                ", ".join(f"{row['ratio_to_twin']:.2f} ({n})" for n, row in draws.iterrows()),
                ", ".join(f"{row['ratio_to_twin']:.2f} ({n})" for n, row in short.iterrows()),
            ]
        )
    return lines


def format_ratio(row: pd.Series, key: str) -> str:
    return f"{row[key]:.2f} ({row[f'{key}_q25']:.2f}–{row[f'{key}_q75']:.2f})"


def main(table: pd.DataFrame, keys: Any) -> None:
    print(format_benchmark(table))


if __name__ == "__main__":
    command.run_analysis(main, str(__doc__))
