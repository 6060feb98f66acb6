"""Running means of named scalars, kept on the device, so that no step waits for it.

torchmetrics is not used here: its MeanMetric divides in float32 (other digits in metrics.csv), takes
twelve times as long per update, and reduces over ranks with two collectives per state.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eltlab.common import collectives


class Meter:
    """Sums named scalars of this rank. `flush` returns the means over steps and ranks, with one transfer
    and one collective for all names."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            # Tensors are added on their device, Python numbers on the host: neither is transferred.
            number = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + number
            self.counts[name] = self.counts.get(name, 0) + 1

    def state(self) -> dict[str, dict[str, float]]:
        """Sums and counts as plain numbers, for a checkpoint; `restore` reads them."""
        return {"sums": self.reduce_sums(), "counts": dict(self.counts)}

    def restore(self, state: dict[str, dict[str, float]]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])

    def flush(self) -> dict[str, float]:
        """The means since the last flush."""
        sums = self.reduce_sums()
        means = {name: sums[name] / count for name, count in self.counts.items()}
        self.sums, self.counts = {}, {}
        return means

    def reduce_sums(self) -> dict[str, Any]:
        """The sums, averaged over ranks. Waits for the device and for the other ranks."""
        tensors = {n: total.float() for n, total in self.sums.items() if isinstance(total, Tensor)}
        if not tensors:
            return dict(self.sums)
        means = collectives.all_reduce_mean(torch.stack(list(tensors.values()))).tolist()
        return self.sums | dict(zip(tensors, means, strict=True))
