"""A worker of a study: claims trials, runs each in a process tree of its own, and writes down how it ended.

The worker has imported what a fit needs and computes nothing itself; a trial is a fork of it. So a
trial starts at once, and a crash, a lack of memory or a hang ends that trial alone.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType

from eltlab.config import Config
from eltlab.errors import UserError
from eltlab.ledger import Claimed, Ledger
from eltlab.pruning import Pruned, Watched
from eltlab.results import read_rows
from eltlab.runs import Run

LOOK = 0.05  # seconds between two looks at a trial that runs
WAIT = 0.5  # seconds between two looks at a study in which others run the last trials
GRACE = 10.0  # seconds that a trial has to end after it was asked to
LAST_LINES = 20  # of a trial that failed, which are written down
PR_SET_PDEATHSIG = 1


class Stopped(Exception):
    """The worker was asked to stop."""


class Lost(Exception):
    """The lease of a trial ran out, and another worker has it."""


# All that a fit imports; none of them starts a thread.
PRELOADED = (
    *("torch", "torch.utils.tensorboard", "torch_fidelity", "sklearn.cluster", "sklearn.datasets"),
    *("eltlab.fit", "eltlab.elastic", "eltlab.metrics.measure", "eltlab.training.module"),
    *("eltlab.training.callbacks", "eltlab.training.validation"),
)


def preload() -> None:
    """Imports what a fit needs: forks of this process have it at once."""
    for name in PRELOADED:
        importlib.import_module(name)


def work(ledger: Ledger, threads: int) -> None:
    """Runs trials until the study has none left. Raises Stopped where it is asked to stop."""
    preload()
    stop_on_signals()
    while ledger.left():
        claimed = ledger.claim()
        if claimed is None:
            time.sleep(WAIT)
            continue
        try:
            run_trial(ledger, claimed, threads)
        except Stopped:
            ledger.release(claimed)
            raise


def stop_on_signals() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def run_trial(ledger: Ledger, claimed: Claimed, threads: int) -> None:
    """Runs a trial's configurations one after the other, and tells the ledger how it ended."""
    study = ledger.study
    log = study.folder / "logs" / f"trial-{claimed.number:05}.log"
    try:
        configs = [study.config(claimed.cell, seed, claimed.number) for seed in claimed.seeds]
        for config in configs:
            if not measured(config):
                run_child(ledger, claimed, config, log, threads)
        ledger.finish(claimed, study.values(configs))
    except Lost:
        print(f"trial {claimed.number}: the lease ran out, another worker has it", file=sys.stderr)
    except Pruned:
        ledger.prune(claimed)
    except UserError as error:
        ledger.fail(claimed, str(error))


def measured(config: Config) -> bool:
    """Whether the run of this configuration has all the rows that it would leave."""
    rows = [row for row in read_rows(Run.of(config).rows) if row["kind"] == "eval"]
    there = {row["loops"] for row in rows if row["images_seen"] == config.images}
    return set(config.evaluate_loops or []) <= there


# --- the process of a trial -----------------------------------------------------------------------


def run_child(ledger: Ledger, claimed: Claimed, config: Config, log: Path, threads: int) -> None:
    """Runs one fit to its end. Raises UserError with its last lines where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    limit = (ledger.study.file.hours or float("inf")) * 3600
    watched = Watched(ledger, claimed, config) if ledger.study.file.pruner != "none" else None
    child = fork(config, log, threads)
    started = signed = time.monotonic()
    try:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            now = time.monotonic()
            if now - started > limit:
                raise UserError(f"stopped after hours={ledger.study.file.hours}{last_lines(log)}")
            if now - signed > ledger.lease / 4:
                if not ledger.renew(claimed):
                    raise Lost
                signed = now
            if watched is not None:
                watched.look()
            time.sleep(LOOK)
    except BaseException:
        end(child)
        raise
    if watched is not None:
        watched.tell()  # all of it, for the trials that are compared with this one
    code = os.waitstatus_to_exitcode(status)
    if code:
        how = f"killed by signal {-code} (out of memory?)" if code < 0 else f"exit code {code}"
        raise UserError(f"{how}{last_lines(log)}")


def fork(config: Config, log: Path, threads: int) -> int:
    """Starts a fit in a process group of its own that dies with this process; its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        die_with(parent)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        redirect(log)
        code = fit_quietly(config, threads)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def fit_quietly(config: Config, threads: int) -> int:
    """A fit's exit code; a user's mistake in one line."""
    import torch

    from eltlab.fit import train_and_measure

    torch.set_num_threads(threads)
    try:
        # Two trials may be one run, and a fit may outlive its worker's lease: the second waits for
        # the first, and finds the run finished.
        train_and_measure(config, wait=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however that dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os._exit(1)


def redirect(log: Path) -> None:
    """Everything that is printed goes behind what the log has."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, target in ((0, null), (1, file), (2, file)):
        os.dup2(target, number)


def end(child: int) -> None:
    """Ends a trial's processes: asks, waits, kills."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(child, number)
        deadline = time.monotonic() + (patience or 60)
        while time.monotonic() < deadline:
            try:
                if os.waitpid(child, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(LOOK)


def last_lines(log: Path) -> str:
    """What a failed trial printed last, behind a line break; and where all of it is."""
    if not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"; {log}:", *lines])
