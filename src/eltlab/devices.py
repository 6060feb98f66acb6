"""Where this process stands among those that work on one run, a device each, and what they tell each
other. torchrun, or `launch.py`, starts them and says in the environment which of them each one is."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eltlab.config import Config
from eltlab.errors import UserError
from eltlab.processes import die_with
from eltlab.rules import check_shares

if TYPE_CHECKING:
    import torch

    from eltlab.seeds import Share

# How long a step waits for another process: one that hangs, and did not end, is noticed after that. The
# launcher notices one that ended, and ends the others.
WAIT = timedelta(hours=2)
# How long the others wait where the first works alone, or the slowest is awaited: it measures against all
# of ImageNet, holds a set's shards against its manifest, or waits for the lock of a run that another command
# trains. None of it has a limit that could be known, and nothing computed is lost meanwhile.
PATIENCE = timedelta(days=30)
_patient: Any = None  # the group of all processes that waits as long
# Seconds between an error here and its report. What another process has to say comes first: ours may
# be a consequence, and the launcher ends all of them with the first that leaves.
AFTER_OTHERS, AFTER_MISTAKES = 5.0, 2.0


# --- what the launcher says -----------------------------------------------------------------------


def launched() -> bool:
    """Whether a launcher started this process, perhaps as the only one."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def rank() -> int:
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """How many processes work on the run."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_world() -> int:
    """How many of them on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world()))


def first() -> bool:
    """Whether this is the process that prints, holds the run and writes its files."""
    return rank() == 0


def settle(config: Config) -> None:
    """Sets trainer.devices and trainer.nodes to what the launcher started.

    Raises UserError where others were asked for, or where the batch cannot be dealt out.
    """
    if not launched():
        return
    trainer = config.trainer
    devices = local_world()
    nodes = world() // devices
    if (trainer.devices, trainer.nodes) not in ((1, 1), (devices, nodes)):
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: the launcher started "
            f"{devices} processes on each of {nodes} nodes; leave both keys out"
        )
    trainer.devices, trainer.nodes = devices, nodes
    check_shares(config)


def needs_launch(config: Config) -> bool:
    """Whether this process should start those that do the work. Raises UserError where it cannot."""
    if launched() or config.world == 1:
        return False
    if config.trainer.nodes > 1:
        raise UserError(
            f"trainer.nodes={config.trainer.nodes}: start the command on every node, by torchrun "
            "--nnodes=… --nproc-per-node=… -m eltlab.fit, or submit it by trainer=slurm"
        )
    return True


def share(config: Config) -> "Share":
    """This process's part of a batch, in the first of its pieces."""
    from eltlab.seeds import Share

    return Share(rank(), world(), 0, config.trainer.accumulate)


# --- who speaks -----------------------------------------------------------------------------------


@contextmanager
def only_the_first_speaks() -> Iterator[None]:
    """Nothing that the other processes print is seen; an exception that leaves the block can be."""
    if first():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def let_others_speak(error: BaseException) -> None:
    """Returns when this process may show its error: the first one's mistakes at once."""
    if world() == 1:
        return
    if not first():
        time.sleep(AFTER_OTHERS)
    elif not isinstance(error, UserError):
        time.sleep(AFTER_MISTAKES)


# --- together -------------------------------------------------------------------------------------


def join(device: "torch.device") -> None:
    """Meets the other processes of this run. Raises UserError where there are too few devices."""
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    die_with(os.getppid(), signal.SIGTERM)  # of the launcher, however that dies
    if device.type == "cuda":
        wanted, there = local_world(), torch.cuda.device_count()
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


def joined() -> tuple[int, int]:
    """How many processes have joined, and which of them this is: (1, 0) where none has."""
    import torch.distributed as dist

    there = dist.is_available() and dist.is_initialized()
    return (dist.get_world_size(), dist.get_rank()) if there else (1, 0)


def together() -> bool:
    """Whether this process has joined others."""
    return joined()[0] > 1


def wait() -> None:
    """Returns when every process is here, however long that takes."""
    if together():
        import torch.distributed as dist

        dist.barrier(_patient)


def mean(values: "torch.Tensor") -> "torch.Tensor":
    """Of all processes' values, which lie on their devices."""
    if not together():
        return values
    import torch.distributed as dist

    total = values.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def told(value: Any = None) -> Any:
    """What the first process gives, however long that takes."""
    if not together():
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, group=_patient)
    return box[0]


def gathered(value: Any) -> list[Any] | None:
    """What every process gives, in the order of ranks, for the first one; None for the others."""
    if not together():
        return [value]
    import torch.distributed as dist

    found = [None] * world() if first() else None
    dist.gather_object(value, found)
    return found
