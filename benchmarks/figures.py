"""Times each figure on a large table.

    python benchmarks/figures.py [rows=100000]

The rows simulate arms of three kinds, with five seeds and eight loop counts. Prints the seconds per figure,
saved as PNG and PDF, and for the report page.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from eltlab.analysis import ablation, anytime, dynamics, pareto, scaling, style
from eltlab.analysis.page import render_page

SEEDS, LOOPS = 5, 8


def simulate(rows: int, folder: Path) -> pd.DataFrame:
    """A table of about this many rows; the runs of the first arm also have dynamics and validation files."""
    rng = np.random.default_rng(0)
    arms = rows // (SEEDS * LOOPS)
    arm, seed, loops = (
        each.ravel() for each in np.meshgrid(range(arms), range(SEEDS), range(1, LOOPS + 1), indexing="ij")
    )
    kind = arm % 3  # ilsd, final, unique layers
    width = 64 * (1 + arm % 4)
    layers = 1 + arm % 7
    trained = np.where(kind == 2, 1, LOOPS)
    macs = 1e6 * layers * width * loops
    fid = 2000 * (macs / 1e6) ** -0.5 * np.exp(rng.normal(0, 0.1, len(arm)))
    name = np.char.add("arm", arm.astype(str))
    name[arm == 0] = "plain"
    run = np.char.add(np.char.add(name, "/"), seed.astype(str))
    table = pd.DataFrame(
        {
            "kind": "eval", "run": run, "name": name, "seed": seed, "study": "made-up", "data": "none",
            "objective": "diffusion", "supervision": np.where(kind == 0, "ilsd", "final"),
            "width": width, "depth": layers * trained, "unique_layers": layers, "loops_train": trained,
            "loops": loops, "loop_schedule": "constant", "steps": 32, "guidance": 1.0, "images_seen": 1000,
            "params_total": layers * width**2 * 12, "macs_per_sample": macs, "train_flops_total": macs * 1e4,
            "protocol": "p", "protocol_text": "{}", "samples": 1000, "fid": fid, "accuracy": 0.5,
            "folder": np.char.add(f"{folder}/", run), "cfg.model.width": width, "cfg.loops": trained,
        }
    )  # fmt: skip
    for each in range(SEEDS):
        write_diagnostics(folder / "plain" / str(each))
    return table


def write_diagnostics(folder: Path) -> None:
    folder.mkdir(parents=True)
    moved = [
        ("p", 1000, 0, LOOPS, step, loop, 1 / loop) for step in range(32) for loop in range(1, LOOPS + 1)
    ]
    columns = ["protocol", "images_seen", "sample_seed", "loops", "step", "loop", "update"]
    pd.DataFrame(moved, columns=columns).to_csv(folder / "dynamics.csv", index=False)
    losses = [(s, 32 * s, e, 0.5, 1 / s) for s in range(1, 9) for e in range(1, LOOPS + 1)]
    columns = ["step", "images", "exit", "level", "loss"]
    pd.DataFrame(losses, columns=columns).to_csv(folder / "validation.csv", index=False)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    keys = dict(text.split("=") for text in sys.argv[1:])
    with TemporaryDirectory() as place:
        folder = Path(place)
        table = simulate(int(keys.get("rows", 100_000)), folder)
        print(f"{len(table):,} rows, {table['name'].nunique():,} arms")
        for module in (pareto, anytime, ablation, dynamics, scaling):
            name = module.__name__.rpartition(".")[2]
            out = folder / f"{name}.png"
            took = seconds(lambda draw=module.draw, out=out: style.save(draw(table), out))
            print(f"{name}: {took:.1f} s")
        print(f"page: {seconds(partial(render_page, table, 'simulated rows')):.1f} s")


if __name__ == "__main__":
    main()
