"""Starts a verb in one process per device, through torchrun's own agent."""

import logging
import os
import sys
import tempfile
import uuid

from eltlab.common.processes import cores


def launch(verb: str, overrides: list[str], devices: int) -> None:
    """Runs python -m eltlab.VERB in `devices` processes of this machine, until they end.

    If one fails, the other processes are terminated and this process exits with its code, without an
    additional message. SIGINT and SIGTERM are passed on to all of them.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Each imported module of torch has a logger with its own level.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # By default each process would use all cores, and the processes would slow each other many times over.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
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


def exit_code(codes: list[int]) -> int:
    """One exit code for the codes of all processes; negative codes are signals."""
    positive = [code for code in codes if code > 0]
    return positive[0] if positive else 128 - codes[0]
