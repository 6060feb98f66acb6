"""python -m eltlab.sample run=DIR loops=2 count=64 labels=… out=grid.png: pictures from a trained run.

Several loop counts make one picture with a block of rows for each. Keys of fit: sampler.*, ema.length.

examples:
  python -m eltlab.sample run=runs/NAME/ID loops=2 'labels=[3,7]'
  python -m eltlab.sample run=runs/NAME/ID 'loops=[1,2,4]' count=8 sampler.guidance=2
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.common.image_grids import grid_suffixes
from eltlab.config.key_help import help_text, key_help
from eltlab.config.keys import key
from eltlab.config.sampling_schedules import parse_schedules
from eltlab.runs.sample_picture import MAX_COUNT, check_picture, draw_picture


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
    out = keys.out or "grid" + grid_suffixes(config.data.frames)[0]
    labels = check_picture(config, len(schedules), keys.count, keys.labels, out)

    from eltlab.runs.load_model import load_run

    model, _ = load_run(run.folder, config)
    draw_picture(model, schedules, labels, keys.seed, Path(out).expanduser())
    print(f"out: {out}")


if __name__ == "__main__":
    run_command(main, usage)
