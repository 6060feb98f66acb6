"""Tables of made-up rows with the columns that analysis reads: the results to be found in them are known."""

from collections.abc import Iterable
from typing import Any

import pandas as pd


def row(
    name: str,
    loops: float,
    value: float,
    *,
    layers: int = 2,
    trained: int = 4,
    seed: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """One evaluation of an arm: its unique layers, the loops it was trained for, the loops measured.

    more: other columns. A pass of one layer costs a million MACs, and a layer has a thousand parameters.
    """
    own = {
        "kind": "eval",
        "run": f"{name}/{seed}",
        "name": name,
        "seed": seed,
        "study": "made-up",
        "data": "none",
        "objective": "diffusion",
        "supervision": "ilsd" if trained > 1 else "final",
        "model": "tiny",
        "width": 64,
        "depth": layers * trained,
        "unique_layers": layers,
        "loops_train": trained,
        "loops": loops,
        "loop_schedule": "constant",
        "steps": 8,
        "guidance": 1.0,
        "images_seen": 1000,
        "params_total": 1000 * layers,
        "macs_per_sample": 1e6 * layers * loops,
        "train_flops_total": 1e12,
        "protocol": "aaaa",
        "protocol_text": '{"samples": 500}',
        "samples": 500,
        "heldout_loss": value,
        "accuracy": 0.5,
        "sample_seed": seed,
        "folder": "nowhere",
    }
    return {**own, **more}


def table(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def arm(name: str, values: dict[int, float], **more: Any) -> list[dict[str, Any]]:
    """An arm's evaluations at each loop count."""
    return [row(name, loops, value, **more) for loops, value in values.items()]


def unique(name: str, layers: int, value: float, **more: Any) -> list[dict[str, Any]]:
    """A unique-layer arm."""
    return [row(name, 1, value, layers=layers, trained=1, **more)]


def vanilla(name: str, values: dict[int, float], **more: Any) -> list[dict[str, Any]]:
    """A vanilla loop."""
    return arm(name, values, supervision="final", **more)


STUDY = table([
    *arm("elastic", {1: 80.0, 2: 30.0, 4: 20.0}),
    *vanilla("vanilla", {1: 900.0, 2: 90.0, 4: 18.0}),
    *unique("twin", 8, 10.0),
    *unique("worse", 9, 11.0),
])  # fmt: skip
TWO_PROTOCOLS = table([
    *arm("a", {1: 9.0, 2: 7.0, 4: 5.0}),
    *arm("b", {1: 9.0, 2: 7.0, 4: 5.0}, protocol="bbbb", protocol_text='{"samples": 900}'),
])  # fmt: skip
