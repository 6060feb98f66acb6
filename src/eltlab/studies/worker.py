"""A worker of a study: claims trials, runs each in a process tree of its own, and writes down how it ended.

The worker has imported what a fit needs and computes nothing itself; a trial is a fork of it. So a
trial starts at once, and a crash, a lack of memory or a hang ends that trial alone.
"""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from eltlab.common import signals
from eltlab.common.errors import UserError
from eltlab.common.processes import die_with_parent
from eltlab.common.signals import Stopped
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.run_folder import Run
from eltlab.studies.pruning import Pruned, Watched
from eltlab.studies.storage import Refused
from eltlab.studies.trials import ClaimedTrial, TrialQueue

Answer = TypeVar("Answer")

STOPS = (*signals.STOPS, signal.SIGINT, signal.SIGHUP)
LOOK = 0.05  # seconds between two looks at a trial that runs
WAIT = 0.5  # seconds between two looks at a study in which others run the last trials
GRACE = 10.0  # seconds that a trial has to end after it was asked to
AGAIN = 1.0  # seconds until a storage that refused is asked again
LEASES = 3  # for which a storage may refuse, after which the worker gives up
LAST_LINES = 20  # of a trial that failed, which are written down


class Lost(Exception):
    """The lease of a trial ran out: another worker has it, or may have it."""


# All that a fit imports; none of them starts a thread.
PRELOADED = (
    *("torch", "torch.utils.tensorboard", "torch_fidelity", "sklearn.cluster", "sklearn.datasets"),
    *("eltlab.data.build", "eltlab.runs.loading", "eltlab.evaluation.metrics"),
    *("eltlab.evaluation.evaluate", "eltlab.training.fit", "eltlab.training.train"),
)


def preload() -> None:
    """Imports what a fit needs: forks of this process have it at once."""
    for name in PRELOADED:
        importlib.import_module(name)


def work(ledger: TrialQueue, threads: int) -> None:
    """Runs trials until the study has none left. Raises Stopped where it is asked to stop."""
    preload()
    stop_on_signals()
    while patiently(ledger.left, ledger.lease):
        heed_signals()
        claimed = patiently(ledger.claim, ledger.lease)
        if claimed is None:
            time.sleep(WAIT)
            continue
        try:
            run_trial(ledger, claimed, threads)
        except Stopped:
            with suppress(Refused):  # then the lease runs out
                ledger.release(claimed)
            raise


def patiently(act: Callable[[], Answer], lease: float) -> Answer:
    """What act gives, asked again while the storage refuses. Raises Refused after some leases."""
    begun = time.monotonic()
    while True:
        try:
            return act()
        except Refused:
            if time.monotonic() - begun > LEASES * lease:
                raise
        heed_signals()
        time.sleep(AGAIN)


# --- signals --------------------------------------------------------------------------------------

asked_to_stop: list[int] = []


def stop_on_signals() -> None:
    """Notes the signals that ask this worker to stop. heed_signals answers between two steps: an
    exception could end a write to the storage halfway, and a second one the giving back of a trial."""
    for number in STOPS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: asked_to_stop.append(number))


def heed_signals() -> None:
    """Raises Stopped where this worker was asked to stop."""
    if asked_to_stop:
        raise Stopped(asked_to_stop[0])


# --- a trial --------------------------------------------------------------------------------------


def run_trial(ledger: TrialQueue, claimed: ClaimedTrial, threads: int) -> None:
    """Runs a trial's configurations one after the other, and tells the ledger how it ended."""
    study = ledger.study
    log = study.folder / "logs" / f"trial-{claimed.number:05}.log"
    deadline = time.monotonic() + (study.file.hours or float("inf")) * 3600
    end_trial: Callable[[], None]
    try:
        configs = [study.config(claimed.cell, seed, claimed.number) for seed in claimed.seeds]
        for config in configs:
            if left_to_measure(Run.of(config)):
                run_child(ledger, claimed, config, log, threads, deadline)
        end_trial = partial(ledger.finish, claimed, study.values(configs))
    except Lost:
        print(f"trial {claimed.number}: its lease ran out", file=sys.stderr)
        return
    except Pruned:
        end_trial = partial(ledger.prune, claimed)
    except Refused:  # of the storage; the trial itself is well
        raise
    except UserError as error:
        end_trial = partial(ledger.fail, claimed, str(error))
    patiently(end_trial, ledger.lease)


def run_child(
    ledger: TrialQueue,
    claimed: ClaimedTrial,
    config: Config,
    log: Path,
    threads: int,
    deadline: float,
) -> None:
    """Runs one fit to its end. Raises UserError with its last lines where it fails.

    A fit needs no storage: while that refuses, it goes on until the lease has passed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    watched = None
    if ledger.study.file.pruner != "none":
        watched = patiently(lambda: Watched(ledger, claimed, config), ledger.lease)
    child = fork(config, log, threads)
    signed = time.monotonic()
    again = 0.0
    try:
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                break
            heed_signals()
            now = time.monotonic()
            if now > deadline:
                raise UserError(f"stopped after hours={ledger.study.file.hours}{last_lines(log)}")
            if now >= again:
                try:
                    if now - signed > ledger.lease / 4:
                        if not ledger.renew(claimed):
                            raise Lost
                        signed = now
                    if watched is not None:
                        watched.look()
                except Refused:
                    again = time.monotonic() + AGAIN
                    if again - signed > ledger.lease:  # another worker may have the trial
                        raise Lost from None
            time.sleep(LOOK)
    except BaseException:
        end(child)
        raise
    if watched is not None:  # all of it, for the trials that are compared with this one
        patiently(watched.tell, ledger.lease)
    code = os.waitstatus_to_exitcode(status)
    if code:
        heed_signals()  # that came to all processes of a job
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
        die_with_parent(parent, signal.SIGKILL)
        for number in STOPS:
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

    from eltlab.training.fit import fit

    torch.set_num_threads(threads)
    try:
        # Two trials may be one run, and a fit may outlive its worker's lease: the second waits for
        # the first, and finds the run finished.
        fit(config, wait=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    return 0


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
