"""Stops training at the end of a step, with its checkpoint, on all ranks at the same one."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)

from eltlab.signals import STOPS, Requests


def environment() -> ClusterEnvironment:
    """Who started the ranks, for Trainer(plugins=…): torchrun by its variables, which cluster.py sets in
    a job, else Lightning. Left to itself it would find SLURM too, and answer its signals by
    checkpoints and requeues of its own."""
    torchrun = TorchElasticEnvironment.detect()
    return TorchElasticEnvironment() if torchrun else LightningEnvironment()


class Agreement:
    """Whether any rank was asked to stop, told to all of them at the same step.

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


class Stopping(Callback):
    """Ends training after the step in which a signal came: saves the checkpoint and raises Stopped.

    Args:
        save: writes the checkpoint.
    """

    def __init__(self, requests: Requests, save: Callable[[Trainer], None]) -> None:
        self.requests, self.save = requests, save

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.agreement = Agreement()
        self.step = module.step
        self.requests.later = True
        self.requests.listen()  # Lightning, which has a SIGTERM of its own, has just taken it

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if module.step == self.step:  # a part of one
            return
        self.step = module.step
        if self.agreement.agreed(self.requests.number is not None):
            self.save(trainer)
            # A rank may end by what another was sent.
            self.requests.number = self.requests.number or STOPS[0]
            self.requests.heed(f" at {module.images_seen:,} images")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.requests.later = False
        self.agreement.answer()
