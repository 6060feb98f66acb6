"""Stops training after a step in which a signal came: on all ranks after the same step, with a checkpoint."""

from collections.abc import Callable
from typing import Any

from lightning import Trainer

from eltlab.common.signals import STOPS, Requests
from eltlab.training.agreement import Agreement
from eltlab.training.callbacks import StepCallback


class StopOnSignal(StepCallback):
    """Ends training after the step in which a signal came: saves the checkpoint and raises Stopped.

    Args:
        save: writes the checkpoint.
    """

    def __init__(self, requests: Requests, save: Callable[[Trainer], None]) -> None:
        self.requests, self.save = requests, save

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        self.agreement = Agreement()
        self.requests.deferred = True
        self.requests.listen()  # again: Lightning has just installed its own handler of SIGTERM

    def after_step(self, trainer: Trainer, module: Any) -> None:
        if self.agreement.agree(self.requests.number is not None):
            self.save(trainer)
            # The signal may have reached another rank only; this one then stops with the same code.
            self.requests.number = self.requests.number or STOPS[0]
            self.requests.raise_if_stopped(f" at {module.images_seen:,} images")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self.requests.deferred = False
        self.agreement.wait_for_answer()
