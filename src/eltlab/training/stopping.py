"""Stops training at the end of a step, with its checkpoint, on all ranks at the same one."""

from collections.abc import Callable
from typing import Any

from lightning import Callback, Trainer

from eltlab.common.signals import STOPS, Requests
from eltlab.training.agreement import Agreement


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
        self.requests.deferred = True
        self.requests.listen()  # Lightning, which has a SIGTERM of its own, has just taken it

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        if module.step == self.step:  # a part of one
            return
        self.step = module.step
        if self.agreement.agreed(self.requests.number is not None):
            self.save(trainer)
            # A rank may end by what another was sent.
            self.requests.number = self.requests.number or STOPS[0]
            self.requests.raise_if_stopped(f" at {module.images_seen:,} images")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.requests.deferred = False
        self.agreement.answer()
