"""python -m eltlab.sample run=DIR loops=2 count=64 labels=… out=grid.png: pictures from a trained run."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eltlab.cli import open_run
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.image_grids import grid_suffixes
from eltlab.config.checks import at_least
from eltlab.config.schedules import SCHEDULE_FORMS, is_loop_schedule
from eltlab.config.schema import Config

MAX_COUNT = 4096


@dataclass
class Asked:
    run: str | None = None
    loops: Any = None
    count: int = 64
    labels: Any = None
    out: str | None = None  # None: grid.png, or grid.gif of clips
    seed: int = 0


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  run=DIR        the folder that fit printed (required)\n"
        "  loops=2        one loop count, 4to1 (linear in the step), or one a step; default: as trained\n"
        "  count=64       images, or clips\n"
        "  'labels=[3,7]' classes, repeated over the images; default: all in turn\n"
        "  out=grid.png   the picture; of clips grid.gif, or an .mp4\n"
        "  seed=0         of the noise: the same seed gives the same noise at every loop count\n"
        "  sampler.*      as in fit: sampler.steps=64 sampler.guidance=2"
    )


def main(overrides: list[str]) -> None:
    run, config, asked = open_run(overrides, Asked())
    at_least(asked, 0, "seed")
    labels = check_request(config, asked)

    import torch

    from eltlab.common.image_grids import save_grid
    from eltlab.runs.loading import load_run

    model, _ = load_run(run.folder, config)
    drawn = model.sample_all(torch.tensor(labels), asked.loops, asked.seed, "sample")
    assert drawn is not None  # by this process alone
    rows = drawn.images.split(math.ceil(math.sqrt(asked.count)))
    out = asked.out or "grid" + grid_suffixes(config.data.frames)[0]
    save_grid(Path(out).expanduser(), list(rows), [""] * len(rows))
    print(f"out: {out}")


def check_request(config: Config, asked: Asked) -> list[int]:
    """The label of each image. Raises UserError."""
    classes, steps = config.data.classes, config.sampler.steps
    if not 1 <= asked.count <= MAX_COUNT:
        raise UserError(f"count={asked.count}: give 1 to {MAX_COUNT} images for one picture")
    loops = asked.loops
    if loops is not None and not is_loop_schedule(loops, steps):
        raise UserError(f"loops={loops}: give {SCHEDULE_FORMS}; sampler.steps={steps}")
    labels = list(range(classes)) if asked.labels is None else asked.labels
    labels = labels if isinstance(labels, list) else [labels]
    if not labels or not all(type(n) is int and 0 <= n < classes for n in labels):
        raise UserError(
            f"labels={asked.labels}: give classes 0 to {classes - 1}, e.g. labels=[3,7]"
        )
    fitting = grid_suffixes(config.data.frames)
    if asked.out is not None and Path(asked.out).suffix.lower() not in fitting:
        what = "pictures are PNG files" if config.data.frames == 1 else "clips are GIF or MP4 files"
        raise UserError(f"out={asked.out}: {what}; end the name in {' or '.join(fitting)}")
    return [labels[i % len(labels)] for i in range(asked.count)]


if __name__ == "__main__":
    run_command(main, usage)
