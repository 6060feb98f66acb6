"""What the ranks of a run agree on between two steps, without waiting for a device."""

from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Whether any rank wants something (to stop, to save), told to all of them at the same step.

    What is asked at one step is answered at the next: the ranks' requests meet on their CPUs (gloo)
    while a step runs, so that no step waits for a device. Made on every rank, or on none.
    """

    def __init__(self) -> None:
        self.group: Any = None  # of one rank
        self.asked = torch.zeros((), dtype=torch.int32)
        self.work: Any = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.group = dist.new_group(backend="gloo")

    def agreed(self, asked: bool) -> bool:
        """Called by every rank at the end of every step."""
        if self.group is None:
            return asked
        answer = self.answer()
        self.asked = torch.tensor(int(asked), dtype=torch.int32)
        self.work = dist.all_reduce(self.asked, dist.ReduceOp.MAX, self.group, async_op=True)
        return answer

    def answer(self) -> bool:
        """Waits for the question under way; what the ranks answered, False where none is."""
        if self.work is None:
            return False
        self.work.wait()
        self.work = None
        return bool(self.asked)
