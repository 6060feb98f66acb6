"""Collectives among the processes of a run: barrier, broadcast, gather, all-reduce."""

import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eltlab.common.errors import UserError
from eltlab.common.processes import die_with_parent
from eltlab.common.ranks import is_main_process, local_world_size, world_size

if TYPE_CHECKING:
    import torch


# How long a step waits for another process: one that hangs, and did not end, is noticed after that. The
# launcher notices one that ended, and ends the others.
WAIT = timedelta(hours=2)


# How long the others wait where the first works alone, or the slowest is awaited: it measures against all
# of ImageNet, holds a set's shards against its manifest, or waits for the lock of a run that another command
# trains. None of it has a limit that could be known, and nothing computed is lost meanwhile.
PATIENCE = timedelta(days=30)


_patient: Any = None  # the group of all processes that waits as long


def init_process_group(device: "torch.device") -> None:
    """Meets the other processes of this run. Raises UserError where there are too few devices."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    die_with_parent(os.getppid(), signal.SIGTERM)  # of the launcher, however that dies
    if device.type == "cuda":
        wanted, there = local_world_size(), torch.cuda.device_count()
        if wanted > there:
            raise UserError(
                f"trainer.devices={wanted}: torch finds {there} CUDA devices here; give at most as many"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # Flags and samples lie on the CPU: to tell them needs no wait for the device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=WAIT)
        global _patient
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)


def world_size_and_rank() -> tuple[int, int]:
    """How many processes have joined, and which of them this is: (1, 0) where none has."""
    import torch.distributed as dist

    there = dist.is_available() and dist.is_initialized()
    return (dist.get_world_size(), dist.get_rank()) if there else (1, 0)


def is_distributed() -> bool:
    """Whether this process has joined others."""
    return world_size_and_rank()[0] > 1


def barrier() -> None:
    """Returns when every process is here, however long that takes."""
    if is_distributed():
        import torch.distributed as dist

        dist.barrier(_patient)


def all_reduce_mean(values: "torch.Tensor") -> "torch.Tensor":
    """Of all processes' values, which lie on their devices."""
    if not is_distributed():
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def broadcast(value: Any = None) -> Any:
    """What the first process gives, however long that takes."""
    if not is_distributed():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def gather(value: Any) -> list[Any] | None:
    """What every process gives, in the order of ranks, for the first one; None for the others."""
    if not is_distributed():
        return [value]
    import torch.distributed as dist

    found = [None] * world_size() if is_main_process() else None
    dist.gather_object(value, found)
    return found
