"""A worker of a study: claims trials, runs each in a separate process, and stores how it ended."""

import importlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from optuna.study import StudyDirection

from eltlab.common.errors import Diverged, UserError
from eltlab.common.package_info import confirm_source
from eltlab.common.processes import Fork, cores, die_with_parent, terminate
from eltlab.common.signals import ALL_STOPS, Requests, Stopped, listening
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.run_folder import Run
from eltlab.studies.storage import RETRY_SECONDS, Answer, Refused, retry_refused
from eltlab.studies.study import Study
from eltlab.studies.study_file import SweepKeys, split_metric
from eltlab.studies.trial_queue import ClaimedTrial, TrialQueue, open_queue
from eltlab.studies.tuning import tuning_config
from eltlab.studies.validation_losses import tuning_losses, validation_curve
from eltlab.training.validation import LEVELS

POLL_SECONDS = 0.05  # between two polls of a running trial
IDLE_SECONDS = 0.5  # between two claims while other workers run the last trials
GRACE = 10.0  # seconds that a trial has to write its checkpoint and end
DIVERGED = 3  # exit code of a fit whose loss was not finite; Python uses 1 for any exception
LAST_LINES = 20  # of a failed trial's log, which are stored with the trial

# All that a fit imports; none of these modules starts a thread.
PRELOADED = (
    *("torch", "torch.utils.tensorboard", "torch_fidelity", "sklearn.cluster", "sklearn.datasets"),
    *("eltlab.data.build", "eltlab.runs.load_model", "eltlab.evaluation.metrics"),
    *("eltlab.evaluation.evaluate", "eltlab.training.fit", "eltlab.training.train"),
)


class Pruned(Exception):
    """The pruner ended a trial."""


class LeaseLost(Exception):
    """The lease of a trial expired: a different worker has it, or may have it."""


def run_worker(study: Study, keys: SweepKeys, workers: int) -> None:
    """Runs trials as one of `workers` workers of this machine, until none is left. Raises Stopped."""
    if keys.sweep is not None:
        die_with_parent(keys.sweep, signal.SIGTERM)
    threads = study.file.threads or max(1, cores() // workers)
    # The storage was open when this worker was started, so a refusal may be temporary.
    queue = retry_refused(lambda: open_queue(study, keys, workers), keys.lease)
    if retry_refused(queue.left, keys.lease):
        retry_refused(queue.check_code, keys.lease)
    preload()
    confirm_source()
    # Deferred: Stopped could interrupt a write to the storage, or the release of a trial.
    with listening(ALL_STOPS, deferred=True) as requests:
        Worker(queue, threads, requests).run()


class Worker:
    """Runs the trials of a queue, each with `threads` threads of torch; `requests` notes a signal to stop."""

    def __init__(self, queue: TrialQueue, threads: int, requests: Requests) -> None:
        self.queue, self.threads, self.requests = queue, threads, requests

    def run(self) -> None:
        """Runs trials until none is left. Raises Stopped after a signal, with its trial released."""
        while self._retry(self.queue.left):
            self.requests.raise_if_stopped()
            claimed = self._retry(self.queue.claim)
            if claimed is None:
                time.sleep(IDLE_SECONDS)
                continue
            try:
                self.run_trial(claimed)
            except Stopped:
                with suppress(Refused):  # then the lease expires
                    self.queue.release(claimed)
                raise

    def _retry(self, call: Callable[[], Answer]) -> Answer:
        return retry_refused(call, self.queue.lease, self.requests)

    def run_trial(self, claimed: ClaimedTrial) -> None:
        """Runs the configurations of a trial, one per seed, and stores how it ended."""
        queue, study = self.queue, self.queue.study
        log = study.folder / "logs" / f"trial-{claimed.number:05}.log"
        deadline = time.monotonic() + (study.file.hours or float("inf")) * 3600
        try:
            configs = [
                study.config(claimed.params, seed, claimed.number, claimed.tuned_on) for seed in claimed.seeds
            ]
            if claimed.tuning:
                losses = self.run_tuning(claimed, configs[0], log, deadline)
                end = partial(queue.finish_tuning, claimed, losses)
            else:
                for config in configs:
                    if left_to_measure(Run.of(config)):
                        self.run_fit(claimed, config, log, deadline)
                end = partial(queue.finish, claimed, study.values(configs))
        except LeaseLost:
            print(f"trial {claimed.number}: its lease expired", file=sys.stderr)
            return
        except Pruned:
            end = partial(queue.prune, claimed)
        except Refused:  # by the storage: the trial has not failed
            raise
        except UserError as error:
            end = partial(queue.fail, claimed, str(error))
        self._retry(end)

    def run_tuning(
        self, claimed: ClaimedTrial, config: Config, log: Path, deadline: float
    ) -> dict[int, float] | None:
        """The held-out losses of a tuning run by exit, trained if it is not yet; None if it diverges."""
        tune = self.queue.study.file.tune
        assert tune is not None
        config = tuning_config(config, tune)
        try:
            if not tuning_losses(config):
                self.run_fit(claimed, config, log, deadline)
        except Diverged:
            return None
        losses = tuning_losses(config)
        if not losses:
            raise UserError(
                f"{config.name}: validation.csv lacks a level after the last step; the tenth that "
                f"data.tuning holds out needs at least {LEVELS} examples"
            )
        return losses if all(map(math.isfinite, losses.values())) else None

    def run_fit(self, claimed: ClaimedTrial, config: Config, log: Path, deadline: float) -> None:
        """Runs one fit to its end. Raises UserError with its last lines if it fails.

        A fit needs no storage: while that refuses, the fit continues until the lease has expired.
        """
        queue, watcher = self.queue, None
        if queue.study.file.pruner != "none":
            watcher = self._retry(lambda: Watcher(queue, claimed, config))
        child = fork_fit(config, log, self.threads)
        renewed, next_call = time.monotonic(), 0.0  # next_call: of the storage, after a refusal
        try:
            while (code := child.poll()) is None:
                self.requests.raise_if_stopped()
                now = time.monotonic()
                if now > deadline:
                    raise UserError(f"stopped after hours={queue.study.file.hours}{last_lines(log)}")
                if now >= next_call:
                    try:
                        if now - renewed > queue.lease / 4:
                            if not queue.renew(claimed):
                                raise LeaseLost
                            renewed = now
                        if watcher is not None:
                            watcher.prune_if_hopeless()
                    except Refused:
                        next_call = time.monotonic() + RETRY_SECONDS
                        if next_call - renewed > queue.lease:  # another worker may have the trial
                            raise LeaseLost from None
                time.sleep(POLL_SECONDS)
        except BaseException:
            terminate([child], GRACE)
            raise
        if watcher is not None:  # all values, for the trials that will be compared with this one
            self._retry(watcher.report)
        if code:
            # A cluster signals all processes of a job: the fit was stopped, it did not fail.
            self.requests.raise_if_stopped()
            how = f"killed by signal {-code} (out of memory?)" if code < 0 else f"exit code {code}"
            kind = Diverged if code == DIVERGED else UserError
            raise kind(f"{how}{last_lines(log)}")


# --- the process of a trial -----------------------------------------------------------------------
#
# A fit is forked from its worker, which has imported what it needs and computes nothing itself. So a trial
# starts at once, and a crash, an out-of-memory kill or a hang ends that trial only.


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
    if child := os.fork():
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
        os._exit(code)  # skips the clean-up, which is the worker's


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
        return DIVERGED if isinstance(error, Diverged) else error.code
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.code
    return 0


def last_lines(log: Path) -> str:
    """The path of a log and its last lines, each on its own line; empty if there is no log."""
    if not log.is_file():
        return ""
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join([f"; {log}:", *lines])


# --- pruning --------------------------------------------------------------------------------------


class Watcher:
    """Watches a running trial for the pruner.

    Optuna compares trials at equal steps, but trials of equal compute see different numbers of images. So a
    step is the fraction of the trial's own budget, in images of the study's base. If all trials see equally
    many images, it is the number of images seen.
    """

    def __init__(self, queue: TrialQueue, claimed: ClaimedTrial, config: Config) -> None:
        study = queue.study
        self.queue, self.claimed = queue, claimed
        self.path = Run.of(config).folder / "validation.csv"
        self.column, loops = split_metric(study.file.watch)
        # Lower losses are better, but Optuna's pruners follow the direction of the objective.
        self.sign = -1 if queue.optuna.direction == StudyDirection.MAXIMIZE else 1
        self.exit = loops or config.loops
        self.images, self.validations = study.base.images, config.trainer.validations
        self.size = 0  # of the file when it was last read
        # If the trial was taken over, its former worker has reported some steps.
        self.reported = set(queue.trials()[claimed.number].intermediate_values)

    def prune_if_hopeless(self) -> None:
        """Reports new values. Raises Pruned if the pruner gives up on the trial."""
        if self.report():
            with self.queue.storage.refusals():
                if self.claimed.trial.should_prune():
                    raise Pruned

    def report(self) -> bool:
        """Reports the new values of validation.csv. Returns whether there were any."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size == self.size:
            return False
        before = len(self.reported)
        for number, value in enumerate(validation_curve(self.path, self.column, self.exit), start=1):
            step = round(number / self.validations * self.images)
            if step not in self.reported:
                self.queue.report(self.claimed, self.sign * value, step)
                self.reported.add(step)
        self.size = size  # last: if the storage refused, the values are reported again
        return len(self.reported) > before
