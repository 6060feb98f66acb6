"""Made-up rows over loops and sampling steps, whose distances are known."""

from typing import Any

import numpy as np

from support.made_up_rows import row

STEPS = (4, 8, 16, 32)
# Tables of rows at several numbers of steps: only the figure of steps shows them.
COMMITTED = ("loops_or_steps", "loops_or_steps_quick")
SHIFTS = (0.0, 0.02, -0.03)  # of each seed


def at_steps(name: str, count: int, loops: float, value: float, **more: Any) -> dict[str, Any]:
    """One row: a pass of one layer costs a million MACs per step."""
    layers = more.get("layers", 2)
    own = {"steps": count, "macs_per_sample": 1e6 * layers * loops * count, "kd_classifier_se": 0.001}
    return row(name, loops, None, kd_classifier=value, **own, **more)


def quality(loops: float, count: int) -> float:
    """A distance that depends on the loops and, less, on the steps."""
    return 1 / loops + 1 / np.sqrt(count)


def rows(shifts: tuple[float, ...] = SHIFTS) -> list[dict[str, Any]]:
    """An elastic arm at three loop counts, with a ramp and halting, and a twin, at four numbers of steps."""
    found = []
    for (seed, shift), count in [(each, count) for each in enumerate(shifts) for count in STEPS]:
        own: dict[str, Any] = {"seed": seed}
        found += [
            at_steps("s/elastic", count, loops, quality(loops, count) + shift * loops, **own)
            for loops in (1, 2, 4)
        ]
        for schedule, loops in (("4to1", 2.5), ("4, halting 0.1 over 128", 3.2)):
            value = quality(loops, count) + 0.1
            found.append(at_steps("s/elastic", count, loops, value, loop_schedule=schedule, **own))
        twin = {"layers": 8, "trained": 1}
        found.append(at_steps("s/twin", count, 1, quality(8, count) + 2 * shift, **own, **twin))
    return found
