"""Starts a verb in one process a device through torchrun's own agent."""

import logging
import os
import sys
import tempfile
import uuid


def launch(verb: str, overrides: list[str], devices: int) -> None:
    """Runs python -m eltlab.VERB in this many processes of this machine, to their end.

    Where one fails the others are ended, and this process leaves with its code, without a word: the
    processes say what there is to say. SIGINT and SIGTERM are passed on to all of them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    hush("torch.distributed")
    # Each process by itself would take all cores, and they would slow each other many times.
    threads = max(1, len(os.sched_getaffinity(0)) // devices)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with tempfile.TemporaryDirectory(prefix="eltlab-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, sys.executable)("-m", f"eltlab.{verb}", *overrides)
        except ChildFailedError as error:
            sys.exit(exit_code([failure.exitcode for failure in error.failures.values()]))
        except SignalException as error:
            sys.exit(128 + error.sigval)


def hush(package: str) -> None:
    """What the modules of a package, as far as they are imported, log is not shown; each of torch's has
    a level of its own."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(package):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def exit_code(codes: list[int]) -> int:
    """What the processes' codes say together; negative ones are signals."""
    left = [code for code in codes if code > 0]
    return left[0] if left else 128 - codes[0]
