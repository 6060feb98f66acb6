"""A picture of samples: a block of rows per loop schedule, with the same noise and labels in each."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common.errors import UserError
from eltlab.common.image_grids import grid_suffixes
from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config

if TYPE_CHECKING:
    from eltlab.generation.anytime_sampler import AnytimeSampler

MAX_COUNT = 4096  # images in one picture


def check_picture(config: Config, schedules: int, count: int, labels: Any, out: str) -> list[int]:
    """The labels of the `count` images that each schedule samples. Raises UserError."""
    classes = config.data.classes
    if count * schedules > MAX_COUNT:
        raise UserError(
            f"count={count}: at {schedules} loop counts more than {MAX_COUNT} images for one "
            f"picture; give at most {MAX_COUNT // schedules}"
        )
    wanted = list(range(classes)) if labels is None else labels
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if not wanted or not all(type(n) is int and 0 <= n < classes for n in wanted):
        raise UserError(f"labels={labels}: give classes 0 to {classes - 1}, e.g. labels=[3,7]")
    suffixes = grid_suffixes(config.data.frames)
    if Path(out).suffix.lower() not in suffixes:
        kind = "pictures are PNG files" if config.data.frames == 1 else "clips are GIF or MP4 files"
        raise UserError(f"out={out}: {kind}; end the name in {' or '.join(suffixes)}")
    return [wanted[i % len(wanted)] for i in range(count)]


def draw_picture(
    model: "AnytimeSampler", schedules: list[LoopSchedule | None], labels: list[int], seed: int, out: Path
) -> None:
    """Samples the labels at each schedule (None: as trained) and saves the picture."""
    import torch

    from eltlab.common.image_grids import save_grid

    rows, names = [], []
    for schedule in schedules:
        sampled = model.sample_all(torch.tensor(labels), schedule, seed, "sample")
        assert sampled is not None  # None in other processes, and there is only one
        block = sampled.images.split(math.ceil(math.sqrt(len(labels))))
        rows += block
        names += [str(schedule) if len(schedules) > 1 else "", *[""] * (len(block) - 1)]
    save_grid(out, rows, names)
