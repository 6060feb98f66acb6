"""Processes that read ahead of whoever needs the data."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from eltlab.errors import UserError
from eltlab.signals import outlive_stops


def read_ahead(dataset: Dataset, items: Iterable[Any], workers: int, pin: bool) -> Iterator[Any]:
    """dataset[item] for each item, in their order. Raises UserError where a process was killed.

    workers: processes that read; 0: this one. pin: into page-locked memory, from which a copy to the
    device need not be waited for.
    """
    loader: DataLoader = DataLoader(
        dataset,
        sampler=items,
        batch_size=None,  # an item of ours is a batch already
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=outlive_stops,
        generator=torch.Generator(),  # its own: the global one belongs to dropout
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"data.workers={workers}: a process that reads was killed, most likely for want of memory or "
            "of /dev/shm; try data.workers=0"
        ) from error
