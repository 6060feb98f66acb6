"""Schedules over the steps of a sampler: guidance, loop counts, and the evaluations they cost."""


def guidance_scale(guidance: float, schedule: str, step: int, steps: int) -> float:
    """w at step 0…steps − 1: constant, or linear in r = (step + 1)/steps from near 1 to guidance."""
    if schedule == "constant":
        return guidance
    return 1 + (guidance - 1) * (step + 1) / steps


def evaluations(guidance: float, schedule: str, steps: int) -> list[int]:
    """Network evaluations of one sample at each step: one where w is 0 or 1, else two. Sum: NFE."""
    scales = [guidance_scale(guidance, schedule, step, steps) for step in range(steps)]
    return [1 if scale in (0, 1) else 2 for scale in scales]


def is_loop_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_loop_schedule(loops: object, steps: int) -> bool:
    """Whether it is one loop count, or a list of one count a step."""
    if isinstance(loops, list):
        return len(loops) == steps and all(is_loop_count(count) for count in loops)
    return is_loop_count(loops)


def loop_schedule(loops: int | list[int], steps: int) -> list[int]:
    """Loops at each step, from one count or from a list of one count a step."""
    if not is_loop_schedule(loops, steps):
        raise ValueError(f"loops {loops}: give one count, or {steps}, one per step, all at least 1")
    return [loops] * steps if isinstance(loops, int) else loops
