"""What an evaluation keeps of its samples beside the rows: pictures, and the relative updates."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.cache import digest
from eltlab.common.files import file_lock, write_atomic
from eltlab.config.schedules import LoopSchedule
from eltlab.config.schema import Config
from eltlab.runs.row_files import ROWS

if TYPE_CHECKING:
    from torch import Tensor

TILES = 10  # images of each loop schedule that are kept
DYNAMICS = ["protocol", "images_seen", "sample_seed", "loops", "step", "loop", "update"]


def save_tiles(folder: Path, schedule: LoopSchedule, config: Config, images: "Tensor") -> None:
    """Saves the first images of a schedule in two rows, for figures that compare runs."""
    from eltlab.common.image_grids import grid_suffixes, save_grid

    name = f"list_{digest(schedule)}" if isinstance(schedule, list) else f"{schedule:0>3}"
    if config.sampler.halting is not None:
        name += f"_halting_{config.sampler.halting}"
    rows = [images[: TILES // 2], images[TILES // 2 : TILES]]
    save_grid(folder / f"loops_{name}{grid_suffixes(config.data.frames)[0]}", rows, ["", ""])


def write_dynamics(folder: Path, row: dict[str, Any], updates: list[list[float]]) -> None:
    """Adds the relative update of every loop at every sampling step to dynamics.csv, in place of an
    older measurement."""
    path = folder / "dynamics.csv"
    name = row["loops"] if row["loop_schedule"] == "constant" else row["loop_schedule"]
    key = [row["protocol"], row["images_seen"], row["sample_seed"], name]
    new = [
        [*key, step, loop + 1, f"{update:.6g}"]
        for step, loops in enumerate(updates)
        for loop, update in enumerate(loops)
    ]
    with file_lock((folder / ROWS).with_suffix(".lock")):
        kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                lines = list(csv.reader(file))[1:]
            kept = [line for line in lines if line[:4] != list(map(str, key))]
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([DYNAMICS, *kept, *new])
        write_atomic(path, buffer.getvalue())
