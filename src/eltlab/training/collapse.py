"""Says if a looped model has collapsed onto its first loop: the later loops barely change the state."""

from collections.abc import Mapping

from eltlab.config.schema import IlsdConfig, RandomDepthConfig, SupervisionConfig

# The mean relative update of loops 2…L, as a share of the first loop's. In the runs of analysis/data it is
# 0.03–0.08 where the model collapsed, which no more loops improved, and at least 0.17 in all others.
LIMIT = 0.1


def collapse_note(updates: Mapping[int, float], supervision: SupervisionConfig) -> str | None:
    """A line for people if loops 2…L move the state by less than LIMIT of what the first loop does.

    updates: relative update of each loop (see `relative_update` in model/loop.py), numbered from 1. None if
    a loop is missing.
    """
    first, later = updates.get(1), [update for loop, update in updates.items() if loop > 1]
    if first is None or not later or sum(later) / len(later) >= LIMIT * first:
        return None
    shown = ", ".join(f"{updates[loop]:.2f}" for loop in sorted(updates))
    note = (
        f"collapsed onto the first loop: the relative updates of loops 1 to {max(updates)} are {shown}, so "
        "more loops change little"
    )
    if isinstance(supervision, IlsdConfig | RandomDepthConfig):
        note += "; supervision.min_loops=2 or higher trains no such early exit"
    return note
