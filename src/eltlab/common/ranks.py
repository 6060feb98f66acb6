"""The rank of this process and the world size, as torchrun's environment variables say. Free of torch."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from eltlab.common.errors import UserError

# Seconds between an error here and its report. What another process has to say comes first: ours may
# be a consequence, and the launcher ends all of them with the first that leaves.
AFTER_OTHERS, AFTER_MISTAKES = 5.0, 2.0


def is_launched() -> bool:
    """Whether a launcher started this process, perhaps as the only one."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def rank() -> int:
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """How many processes work on the run."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_world_size() -> int:
    """How many of them on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main_process() -> bool:
    """Whether this is the process that prints, holds the run and writes its files."""
    return rank() == 0


@contextmanager
def silence_other_ranks() -> Iterator[None]:
    """Nothing that the other processes print is seen; an exception that leaves the block can be."""
    if is_main_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def wait_for_other_errors(error: BaseException) -> None:
    """Returns when this process may show its error: the first one's mistakes at once."""
    if world_size() == 1:
        return
    if not is_main_process():
        time.sleep(AFTER_OTHERS)
    elif not isinstance(error, UserError):
        time.sleep(AFTER_MISTAKES)
