"""python -m eltlab.sample run=DIR loops=2 count=64 labels=… out=grid.png: pictures from a trained run.

Several loop counts make one picture with a block of rows for each. Keys of fit: sampler.*.

examples:
  python -m eltlab.sample run=runs/NAME/ID loops=2 'labels=[3,7]'
  python -m eltlab.sample run=runs/NAME/ID 'loops=[1,2,4]' count=8 sampler.guidance=2
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.image_grids import grid_suffixes
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.config.sampling_schedules import parse_schedules
from eltlab.config.schema import Config

MAX_COUNT = 4096


@dataclass
class Keys:
    run: str | None = key(None, "the folder that fit printed (required)")
    loops: Any = key(
        None,
        "loop counts, ramps over the steps such as 4to1, and lists of one count per step; null: as trained",
    )
    count: int = key(64, "images or clips per loop count", low=1, high=MAX_COUNT)
    labels: Any = key(None, "classes, e.g. [3,7], repeated over the images; null: all in turn")
    out: str | None = key(None, "null: grid.png, for clips grid.gif; clips may be .mp4 files too")
    seed: int = key(0, "the same seed gives the same noise at every loop count", low=0)


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()))


def main(overrides: list[str]) -> None:
    run, config, keys = open_run(overrides, Keys())
    schedules: list[Any] = [None]
    if keys.loops is not None:
        schedules = parse_schedules(keys.loops, config.sampler.steps)
    labels = check_request(config, keys, len(schedules))

    import torch

    from eltlab.common.image_grids import save_grid
    from eltlab.runs.load_model import load_run

    model, _ = load_run(run.folder, config)
    rows, names = [], []
    for schedule in schedules:
        sampled = model.sample_all(torch.tensor(labels), schedule, keys.seed, "sample")
        assert sampled is not None  # None in other processes, and there is only one
        block = sampled.images.split(math.ceil(math.sqrt(keys.count)))
        rows += block
        names += [str(schedule) if len(schedules) > 1 else "", *[""] * (len(block) - 1)]
    out = keys.out or "grid" + grid_suffixes(config.data.frames)[0]
    save_grid(Path(out).expanduser(), rows, names)
    print(f"out: {out}")


def check_request(config: Config, keys: Keys, loop_counts: int) -> list[int]:
    """The label of each image of a loop count. Raises UserError."""
    classes = config.data.classes
    if keys.count * loop_counts > MAX_COUNT:
        raise UserError(
            f"count={keys.count}: at {loop_counts} loop counts more than {MAX_COUNT} images for one "
            f"picture; give at most {MAX_COUNT // loop_counts}"
        )
    labels = list(range(classes)) if keys.labels is None else keys.labels
    labels = labels if isinstance(labels, list) else [labels]
    if not labels or not all(type(n) is int and 0 <= n < classes for n in labels):
        raise UserError(f"labels={keys.labels}: give classes 0 to {classes - 1}, e.g. labels=[3,7]")
    suffixes = grid_suffixes(config.data.frames)
    if keys.out is not None and Path(keys.out).suffix.lower() not in suffixes:
        kind = "pictures are PNG files" if config.data.frames == 1 else "clips are GIF or MP4 files"
        raise UserError(f"out={keys.out}: {kind}; end the name in {' or '.join(suffixes)}")
    return [labels[i % len(labels)] for i in range(keys.count)]


if __name__ == "__main__":
    run_command(main, usage)
