"""The rank of this process and the world size, from torchrun's environment variables, without torch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from eltlab.common.errors import UserError

# Seconds between an error and its report, on ranks above 0 and on rank 0 if it is not invalid input.
# The launcher ends all processes as soon as one exits, and an error is often the consequence of an error
# on a different rank, which should be printed first.
OTHER_RANKS_SECONDS, MAIN_SECONDS = 5.0, 2.0


def is_launched() -> bool:
    """Whether a launcher such as torchrun started this process, perhaps as the only one."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def rank() -> int:
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """The number of processes of the run."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_world_size() -> int:
    """The number of processes on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main_process() -> bool:
    """Whether this is rank 0, which prints, holds the run's lock and writes its files."""
    return rank() == 0


@contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Discards what ranks above 0 print in the block, but not an exception that leaves it."""
    if is_main_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def wait_for_other_errors(error: BaseException) -> None:
    """Waits before this process reports its error, unless it is rank 0's invalid input."""
    if world_size() == 1:
        return
    if not is_main_process():
        time.sleep(OTHER_RANKS_SECONDS)
    elif not isinstance(error, UserError):
        time.sleep(MAIN_SECONDS)
