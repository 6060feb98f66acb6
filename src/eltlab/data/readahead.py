"""Processes that read ahead of whoever needs the data."""

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


def _begin(worker: int) -> None:
    """In a process that reads. It has inherited the lock of the run: were it to outlive a training process
    that was killed, by the seconds until it noticed, the same command would be told that the run is trained.
    """
    outlive_stops(worker)
    die_with_parent(os.getppid(), signal.SIGKILL)


@dataclass
class _Errors(Dataset):
    """Returns a UserError as an item: raised in a worker process, it would arrive inside a traceback."""

    dataset: Dataset

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.dataset[item]
        except UserError as error:
            return error


def read_ahead(dataset: Dataset, items: Iterable[Any], workers: int, pin: bool) -> Iterator[Any]:
    """dataset[item] for each item, in their order. Raises UserError if the dataset raises it or if a
    process was killed.

    workers: processes that read; 0: this one. pin: into page-locked memory, from which a copy to the
    device need not be waited for.
    """
    loader: DataLoader = DataLoader(
        _Errors(dataset),
        sampler=items,
        batch_size=None,  # an item of ours is a batch already
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # its own: the global one belongs to dropout
    )
    try:
        for made in loader:
            # Here and not by the caller: with an error that is kept, its processes would be kept too.
            if isinstance(made, UserError):
                raise made
            yield made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"data.workers={workers}: a process that reads was killed, most likely for want of memory or "
            "of /dev/shm; try data.workers=0"
        ) from error
