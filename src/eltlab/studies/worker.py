"""A worker of a study: claims trials, runs each in a separate process, and stores how it ended."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from eltlab.common.errors import UserError
from eltlab.common.processes import cores, die_with_parent, terminate
from eltlab.common.signals import ALL_STOPS, Requests, Stopped, listening
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.run_folder import Run
from eltlab.studies.pruning import Pruned, Watcher
from eltlab.studies.storage import RETRY_SECONDS, Answer, Refused, retry_refused
from eltlab.studies.study import Study
from eltlab.studies.sweep_keys import SweepKeys
from eltlab.studies.trial_process import fork_fit, last_lines, preload
from eltlab.studies.trial_queue import ClaimedTrial, TrialQueue, open_queue

POLL_SECONDS = 0.05  # between two polls of a running trial
IDLE_SECONDS = 0.5  # between two claims while other workers run the last trials
GRACE = 10.0  # seconds that a trial has to write its checkpoint and end


class LeaseLost(Exception):
    """The lease of a trial expired: a different worker has it, or may have it."""


def run_worker(study: Study, keys: SweepKeys, workers: int) -> None:
    """Runs trials as one of `workers` workers of this machine, until none is left. Raises Stopped."""
    if keys.sweep is not None:
        die_with_parent(keys.sweep, signal.SIGTERM)
    threads = study.file.threads or max(1, cores() // workers)
    # The storage was open when this worker was started, so a refusal may pass.
    queue = retry_refused(lambda: open_queue(study, keys, workers), keys.lease)
    preload()
    # Deferred: Stopped could interrupt a write to the storage, or the release of a trial.
    with listening(ALL_STOPS, deferred=True) as requests:
        Worker(queue, threads, requests).run()


class Worker:
    """Runs the trials of a queue.

    Args:
        threads: of torch in each trial.
        requests: notes a signal to stop.
    """

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
            configs = [study.config(claimed.params, seed, claimed.number) for seed in claimed.seeds]
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

    def run_fit(self, claimed: ClaimedTrial, config: Config, log: Path, deadline: float) -> None:
        """Runs one fit to its end. Raises UserError with its last lines if it fails.

        A fit needs no storage: while that refuses, the fit continues until the lease has expired.
        """
        queue, watcher = self.queue, None
        if queue.study.file.pruner != "none":
            watcher = self._retry(lambda: Watcher(queue, claimed, config))
        child = fork_fit(config, log, self.threads)
        renewed = time.monotonic()
        next_call = 0.0  # of the storage
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
            raise UserError(f"{how}{last_lines(log)}")
