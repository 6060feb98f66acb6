"""How the ranks of a run agree to save or to stop after the same step, without waiting for a device."""

from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Tells all ranks at the same step the largest request of any of them (such as 1: save, 2: stop).

    A request made at one step is answered at the next. Requests are reduced on the CPU (gloo) while a
    step runs, so no step waits for a device. Construct it on every rank or on none: with several ranks
    it creates a process group.
    """

    def __init__(self) -> None:
        self.group: Any = None  # None for a single rank
        self.request = torch.zeros((), dtype=torch.int32)
        self.work: Any = None  # the reduction in flight
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def agree(self, request: int) -> int:
        """The largest request of one step ago. Every rank calls this at the end of every step."""
        if self.group is None:
            return request
        answer = self.wait_for_answer()
        self.request = torch.tensor(int(request), dtype=torch.int32)
        self.work = dist.all_reduce(self.request, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer

    def wait_for_answer(self) -> int:
        """Waits for the reduction in flight. Returns its result, or 0 if there is none."""
        if self.work is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.request)
