"""How the ranks of a run agree to stop or to save after the same step, without waiting for a device."""

from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Tells all ranks at the same step whether any of them made a request (to stop, to save).

    A request made at one step is answered at the next. Requests are reduced on the CPU (gloo) while a
    step runs, so no step waits for a device. Construct it on every rank or on none: with several ranks
    it creates a process group.
    """

    def __init__(self) -> None:
        self.group: Any = None  # None for a single rank
        self.requested = torch.zeros((), dtype=torch.int32)
        self.work: Any = None  # the reduction in flight
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def agree(self, requested: bool) -> bool:
        """Whether any rank requested it one step ago. Every rank calls this at the end of every step."""
        if self.group is None:
            return requested
        answer = self.wait_for_answer()
        self.requested = torch.tensor(int(requested), dtype=torch.int32)
        self.work = dist.all_reduce(self.requested, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer

    def wait_for_answer(self) -> bool:
        """Waits for the reduction in flight. Returns its result, or False if there is none."""
        if self.work is None:
            return False
        self.work.wait()
        self.work = None
        return bool(self.requested)
