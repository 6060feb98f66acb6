"""The tables that bench prints of its rows: training steps and sampling."""

from typing import Any

from eltlab.common.text import format_bytes, format_duration, format_si, format_table

Rows = list[dict[str, Any]]


def train_table(rows: Rows) -> list[str]:
    phases = ("forward", "backward", "optimizer", "data")
    head = ["training step", "seconds", "x twin", "x vanilla", *phases]
    head += ["examples/s", "utilisation", "peak", "predicted"]
    lines = [
        [
            f"{row['unique_layers']} x {row['loops']} {row['supervision']}",
            format_duration(row["seconds"]),
            f"{row['ratio_to_twin']:.2f}",
            f"{row['ratio_to_vanilla']:.2f}",
            *(format_duration(row[f"{phase}_seconds"]) for phase in phases),
            f"{row['images_per_second']:,.1f}",
            f"{row['mfu']:.0%}",
            format_bytes(row["peak_memory_bytes"]),
            format_bytes(row["memory_training_bytes"]),
        ]
        for row in rows
    ]
    first = rows[0]
    peak = format_si(first["matmul_flops_per_second"], "FLOP/s")
    return [
        f"{first['device']}, {first['precision']}, batch {first['batch_size']}, medians of "
        f"{first['repeats']}; utilisation of {peak}, one large matrix product",
        *format_table([head, *lines]),
    ]


def sample_table(rows: Rows) -> list[str]:
    head = ["samples", "at a time", "seconds", "x twin", "samples/s", "utilisation"]
    lines = [
        [
            f"{row['unique_layers']} x {row['loops_train']} at {row['loops']}",
            str(row["batch_size"]),
            format_duration(row["seconds"]),
            f"{row['ratio_to_twin']:.2f}",
            f"{row['images_per_second']:,.1f}",
            f"{row['mfu']:.0%}",
        ]
        for row in rows
    ]
    title = f"{rows[0]['steps']} sampling steps, guidance {rows[0]['guidance']:g}"
    return [title, *format_table([head, *lines])]
