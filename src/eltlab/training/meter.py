"""Means of what happened since the last report, kept on the device: no synchronisation in the step.

What a device adds is of its share of the batch; a report is the mean over all devices.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from eltlab.common import distributed


class Meter:
    """Sums named scalars; `flush` brings all means to the host in one transfer."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            # A Tensor joins the sum on its device; a Python number costs no transfer.
            self.sums[name] = self.sums.get(name, 0.0) + _detached(value)
            self.counts[name] = self.counts.get(name, 0) + 1

    def state(self) -> dict[str, dict[str, float]]:
        """Sums and counts as plain numbers, for a checkpoint; `restore` takes them."""
        return {"sums": self.totals(), "counts": dict(self.counts)}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])

    def flush(self) -> dict[str, float]:
        totals = self.totals()
        means = {name: totals[name] / count for name, count in self.counts.items()}
        self.sums, self.counts = {}, {}
        return means

    def totals(self) -> dict[str, float]:
        """The sums, means over all devices. Waits for the device and the others."""
        tensors = {n: total for n, total in self.sums.items() if isinstance(total, Tensor)}
        totals = {n: total for n, total in self.sums.items() if not isinstance(total, Tensor)}
        if tensors:
            stacked = distributed.all_reduce_mean(
                torch.stack([total.float() for total in tensors.values()])
            )
            totals.update(zip(tensors, stacked.tolist(), strict=True))
        return totals


def _detached(value: Tensor | float) -> Tensor | float:
    return value.detach() if isinstance(value, Tensor) else value
