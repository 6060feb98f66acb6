"""The process of a trial: a fit that is forked from its worker and writes to a separate log.

The worker has imported what a fit needs and computes nothing itself. So a trial starts at once, and a crash,
an out-of-memory kill or a hang ends that trial only.
"""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.common.processes import Fork, die_with_parent
from eltlab.common.signals import ALL_STOPS, Stopped
from eltlab.config.schema import Config

LAST_LINES = 20  # of a failed trial's log, which are stored with the trial

# All that a fit imports; none of these modules starts a thread.
PRELOADED = (
    *("torch", "torch.utils.tensorboard", "torch_fidelity", "sklearn.cluster", "sklearn.datasets"),
    *("eltlab.data.build", "eltlab.runs.loading", "eltlab.evaluation.metrics"),
    *("eltlab.evaluation.evaluate", "eltlab.training.fit", "eltlab.training.train"),
)


def preload() -> None:
    """Imports what a fit needs: forks of this process have it at once."""
    for name in PRELOADED:
        importlib.import_module(name)


def fork_fit(config: Config, log: Path, threads: int) -> Fork:
    """Starts a fit in a new process group that dies with this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()  # else the child would print what is buffered here a second time
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return Fork(child)
    code = 1
    try:
        os.setsid()
        die_with_parent(parent, signal.SIGKILL)
        for number in ALL_STOPS:  # the handlers are the worker's
            signal.signal(number, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for descriptor, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(target, descriptor)
        code = fit_quietly(config, threads)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # without the cleaning up that the worker will do


def fit_quietly(config: Config, threads: int) -> int:
    """Runs a fit and returns its exit code; a UserError is printed as one line."""
    import torch

    from eltlab.training.fit import fit

    torch.set_num_threads(threads)
    try:
        # Two trials may be the same run, and a fit may outlive its worker's lease: the second waits for
        # the first, and finds the run finished.
        fit(config, wait=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    return 0


def last_lines(log: Path) -> str:
    """The path of a log and, each behind a line break, its last lines; empty if there is no log."""
    if not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"; {log}:", *lines])
