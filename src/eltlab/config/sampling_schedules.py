"""Schedules over the steps of a sampler: guidance, loop counts, and the evaluations they cost."""

import re

from eltlab.common.errors import UserError


def guidance_scale(guidance: float, schedule: str, step: int, steps: int) -> float:
    """w at step 0…steps − 1: constant, or linear in r = (step + 1)/steps from near 1 to guidance."""
    if schedule == "constant":
        return guidance
    return 1 + (guidance - 1) * (step + 1) / steps


def evaluations(guidance: float, schedule: str, steps: int) -> list[int]:
    """Passes that guidance needs for one prediction at each step: one if w is 0 or 1, else two."""
    scales = [guidance_scale(guidance, schedule, step, steps) for step in range(steps)]
    return [1 if scale in (0, 1) else 2 for scale in scales]


def is_loop_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_loop_schedule(loops: object, steps: int) -> bool:
    """Whether loops is one loop count, a ramp "AtoB", or a list of one count per step."""
    if isinstance(loops, str):
        return re.fullmatch(r"[1-9]\d{0,5}to[1-9]\d{0,5}", loops) is not None
    if isinstance(loops, list):
        return len(loops) == steps and all(is_loop_count(count) for count in loops)
    return is_loop_count(loops)


def check_schedule(key: str, loops: object, steps: int) -> None:
    """Raises UserError unless loops is a loop schedule; key: its name in the message."""
    if is_loop_schedule(loops, steps):
        return
    entries = isinstance(loops, list) and bool(loops) and all(is_loop_count(n) for n in loops)
    problem = f" has {len(loops)} entries but sampler.steps={steps};" if entries else ":"  # type: ignore
    raise UserError(
        f"{key}={loops}{problem} give an integer of at least 1, a ramp such as 4to1, or {steps} counts, "
        "one per step"
    )


LoopSchedule = int | str | list[int]


def loop_schedule(loops: LoopSchedule, steps: int) -> list[int]:
    """Loops at each step, from one count, from a ramp "AtoB" (linear in the step) or from a list."""
    if not is_loop_schedule(loops, steps):
        raise ValueError(f"loops {loops}: give a count, a ramp such as 4to1, or {steps} counts")
    if isinstance(loops, int):
        return [loops] * steps
    if isinstance(loops, list):
        return loops
    first, last = map(int, loops.split("to"))
    # Rounded half up, in integers: the same on every machine.
    span = max(steps - 1, 1)
    return [(2 * (first * (span - k) + last * k) + span) // (2 * span) for k in range(steps)]


def parse_schedules(loops: object, steps: int) -> list[LoopSchedule]:
    """The schedules of a verb's loops=: one schedule, or a list of them. Raises UserError."""
    schedules = [loops] if isinstance(loops, int | str) else loops
    if not isinstance(schedules, list) or not schedules:
        raise UserError(f"loops={loops}: give loop counts of at least 1, e.g. loops=[1,2,4]")
    for each in schedules:
        check_schedule("loops", each, steps)
    return schedules
