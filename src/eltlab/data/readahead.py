"""Reads examples in worker processes before they are needed."""

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eltlab.common.errors import UserError
from eltlab.common.processes import die_with_parent
from eltlab.common.signals import outlive_stops


def _start_worker(worker: int) -> None:
    outlive_stops(worker)
    # A worker inherits the lock of the run. If it outlived a killed training process, even by seconds,
    # the same command would report that the run is already being trained.
    die_with_parent(os.getppid(), signal.SIGKILL)


@dataclass
class _CatchErrors(Dataset):
    """Returns a UserError as an item: DataLoader would wrap a raised one in a traceback."""

    dataset: Dataset

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def read_ahead(dataset: Dataset, items: Iterable[Any], workers: int, pin: bool) -> Iterator[Any]:
    """dataset[item] for each item, in order. Raises UserError if the dataset does, or if a worker is killed.

    workers: number of worker processes; 0: this process reads.
    pin: read into page-locked memory, so that copies to the device run in the background.
    """
    loader: DataLoader = DataLoader(
        _CatchErrors(dataset),
        sampler=items,
        batch_size=None,  # an item is a batch already
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # so that the global one, from which dropout draws, does not advance
    )
    try:
        for item in loader:
            # Raised here and not by the caller: an error keeps its frames alive, and they keep the workers.
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"data.workers={workers}: a worker process was killed, most likely because memory or /dev/shm "
            "ran out; try data.workers=0"
        ) from error
