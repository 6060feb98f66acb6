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


# How long a collective in a training step waits for a process that hangs. If a process dies, the launcher
# ends the other processes at once.
WAIT = timedelta(hours=2)

# How long the other ranks wait while rank 0 works alone or the slowest rank catches up: decoding all of
# ImageNet, checking shards against a manifest, waiting for a lock. No useful limit is known for these.
PATIENCE = timedelta(days=30)

_patient: Any = None  # a group of all processes whose collectives time out after PATIENCE


def init_process_group(device: "torch.device") -> None:
    """Joins the other processes of this run. Raises UserError if there are too few CUDA devices."""
    if world_size() == 1:
        return
    import torch
    import torch.distributed as dist

    # Even if the launcher is killed, its processes end.
    die_with_parent(os.getppid(), signal.SIGTERM)
    if device.type == "cuda":
        requested, available = local_world_size(), torch.cuda.device_count()
        if requested > available:
            raise UserError(
                f"trainer.devices={requested}: torch finds {available} CUDA devices here; "
                "give at most as many"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        # Gloo in addition to NCCL: flags and samples are on the CPU, and NCCL would wait for the device.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=WAIT)
        global _patient
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)


def _torch_distributed() -> Any:
    """torch.distributed if this run has several processes and has joined them, else None."""
    import torch.distributed as dist

    initialized = dist.is_available() and dist.is_initialized()
    return dist if initialized and dist.get_world_size() > 1 else None


def world_size_and_rank() -> tuple[int, int]:
    """The world size and this rank after `init_process_group`, else (1, 0)."""
    dist = _torch_distributed()
    return (dist.get_world_size(), dist.get_rank()) if dist else (1, 0)


def barrier() -> None:
    """Returns when every process has called it, waiting up to PATIENCE."""
    if dist := _torch_distributed():
        dist.barrier(_patient)


def all_reduce_mean(values: "torch.Tensor") -> "torch.Tensor":
    """The mean over all processes, on the device of values."""
    if not (dist := _torch_distributed()):
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def broadcast(value: Any = None) -> Any:
    """Rank 0's value on every rank, waiting up to PATIENCE for it."""
    if not (dist := _torch_distributed()):
        return value
    box = [value]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def gather(value: Any) -> list[Any] | None:
    """The values of all ranks in order, on rank 0; None on the other ranks."""
    if not (dist := _torch_distributed()):
        return [value]
    values = [None] * world_size() if is_main_process() else None
    dist.gather_object(value, values)
    return values
