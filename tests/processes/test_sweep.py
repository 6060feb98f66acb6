"""Sweeps whose processes are killed, stopped or put to sleep, or whose server goes away."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.small_studies import filled, opened, queue_of, written
from support.sweeps import is_training, run_sweep, start_sweep
from support.waiting import until

from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.studies.storage import open_storage
from eltlab.studies.study import load_study
from eltlab.studies.trial_queue import TrialQueue, is_expired
from eltlab.training.callbacks import CheckpointWriter

pytestmark = pytest.mark.integration

# A run that only a signal ends, and one that ends soon after what the test waits for.
ENDLESS, LONG, MEDIUM, SHORT = (f"budget.images={images}" for images in (4_000_000, 8000, 4000, 1600))
OFTEN = "trainer.checkpoint_seconds=0.2"
UNEXPIRED = "lease=100000"  # so that a lease ends only if its trial is released
ONE_TRIAL = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
TWO_TRIALS = "space:\n  loops: [2, 4]\nseeds: [0]\nmatched: images\n"


def start_real_sweep(file: str, runs: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Starts the real command, which starts real workers."""
    command = [sys.executable, "-m", "eltlab.sweep", file, f"runs_dir={runs}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_equal_draws_of_two_workers_are_trained_once(tmp_path):
    """The second waits for the first, and gets its values."""
    text = "space:\n  loops: [2]\nsampler: random\ntrials: 4\nseeds: [0]\nmatched: images\n"
    run_sweep(tmp_path, text, SHORT, "workers=2")
    trials = queue_of(opened(tmp_path, text, overrides=[SHORT])).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len({trial.values[0] for trial in trials}) == 1
    logs = [log.read_text() for log in (tmp_path / "runs").rglob("trial-*.log")]
    assert sum("finished before" in log for log in logs) == len(logs) - 1


# --- a storage that cannot be reached -------------------------------------------------------------


@pytest.mark.parametrize("pruner", [pytest.param("none", marks=pytest.mark.slow), "median"])
def test_a_study_trains_while_its_server_is_away(tmp_path, postgres_server, pruner):
    """Its trials keep their leases, so no other worker can have them."""
    more = [SHORT, OFTEN, "trainer.validations=20"]
    file, runs = written(tmp_path, f"{TWO_TRIALS}pruner: {pruner}\n"), tmp_path / "runs"
    url = postgres_server.database()
    running = start_sweep(file, runs, *more, "workers=2", UNEXPIRED, f"storage={url}")
    try:
        until(lambda: len(list(runs.rglob("last.ckpt"))) == 2, process=running)
        postgres_server.stop()
        until(lambda: "; trying again" in running.output()[1])
        until(lambda: len(list(runs.rglob("rows.jsonl"))) == 2)  # both are trained and measured
        assert postgres_server.start()
        _, err = running.communicate()
    finally:
        running.terminate()
    assert_outlasted(running, err, file, more, runs, url, resumed=False)


def test_fits_that_still_train_report_what_their_server_missed(tmp_path, postgres_server, monkeypatch):
    more = [SHORT, OFTEN, "trainer.validations=20"]  # one every ten steps
    file, runs = written(tmp_path, f"{TWO_TRIALS}pruner: median\n"), tmp_path / "runs"
    url = postgres_server.database()
    hold_fits_after(monkeypatch, tmp_path, 20, 100)
    running = start_sweep(file, runs, *more, "workers=2", UNEXPIRED, f"storage={url}")
    try:
        until(lambda: len(list(tmp_path.glob("20 *"))) == 2, process=running)
        postgres_server.stop()
        (tmp_path / "after 20").touch()
        until(lambda: len(list(tmp_path.glob("100 *"))) == 2, process=running)
        until(lambda: "; trying again" in running.output()[1])
        assert postgres_server.start()
        queue = queue_at(url, file, more, runs)
        until(lambda: reported(queue) >= 2 * 9, process=running)
        assert all(is_training(path.parent) for path in runs.rglob("validation.csv"))
        (tmp_path / "after 100").touch()
        _, err = running.communicate()
    finally:
        running.terminate()
    assert_outlasted(running, err, file, more, runs, url, resumed=False)
    assert reported(queue) == 2 * 20


def hold_fits_after(monkeypatch: pytest.MonkeyPatch, folder: Path, *steps: int) -> None:
    """Each fit of a forked sweep makes a file "STEP PID" after these steps, and waits for "after STEP"."""
    after_step = CheckpointWriter.after_step

    def held(self, trainer, module):
        if module.step in steps:
            (folder / f"{module.step} {os.getpid()}").touch()
            until((folder / f"after {module.step}").exists)
        after_step(self, trainer, module)

    monkeypatch.setattr(CheckpointWriter, "after_step", held)


def test_a_study_resumes_if_its_server_is_away_for_longer_than_a_lease(tmp_path, postgres_server):
    """The real command. Another worker might have the trials, so their fits end."""
    more = [LONG, OFTEN]
    file, runs, url = written(tmp_path, TWO_TRIALS), tmp_path / "runs", postgres_server.database()
    running = start_real_sweep(file, runs, *more, "workers=2", "lease=2", f"storage={url}")
    try:
        until(lambda: len(list(runs.rglob("last.ckpt"))) == 2, process=running)
        postgres_server.stop()
        for path in runs.rglob("last.ckpt"):
            until(lambda folder=path.parents[1]: not is_training(folder))
        assert postgres_server.start()
        _, err = running.communicate()
    finally:
        running.terminate()
    assert_outlasted(running, err, file, more, runs, url, resumed=True)


def assert_outlasted(running, err, file, more, runs, url, resumed: bool) -> None:
    assert running.returncode == 0 and "Traceback" not in err, err
    assert err.count("; trying again") == 1
    trials = queue_at(url, file, more, runs).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert ["resumed at" in log.read_text() for log in runs.rglob("trial-*.log")] == [resumed] * 2


def queue_at(url: str, file: str, more: list[str], runs: Path) -> TrialQueue:
    study = load_study(file, None, more, str(runs), {})
    return TrialQueue(study, open_storage(url, study.folder, study=study.name), "me", 60.0)


def reported(queue: TrialQueue) -> int:
    """How many values the pruner has of all trials."""
    return sum(len(trial.intermediate_values) for trial in queue.trials())


def test_a_server_that_stays_away_ends_the_study_with_a_message(tmp_path, postgres_server):
    """What was trained meanwhile is not lost: once the server is back, the same command records it."""
    more = [SHORT, OFTEN]
    file, runs, url = written(tmp_path, ONE_TRIAL), tmp_path / "runs", postgres_server.database()
    running = start_sweep(file, runs, *more, "lease=1", f"storage={url}")
    until(lambda: list(runs.rglob("last.ckpt")), process=running)
    postgres_server.stop()
    _, err = running.communicate(timeout=600)
    assert running.returncode == 2, err
    # The sweep says that it waits, the worker and the sweep that they gave up.
    messages = [line for line in err.splitlines() if line.startswith(("error:", "storage="))]
    assert len(messages) == 3 and messages[-1] == "error: a worker gave up; its message is above", err
    assert "Traceback" not in err and "refused" in messages[1] and "s3cret" not in err
    assert postgres_server.start()
    again = start_sweep(file, runs, *more, f"storage={url}")
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0, err


# --- kills ----------------------------------------------------------------------------------------


def test_a_killed_worker_takes_its_trial_with_it_and_another_resumes_it(tmp_path):
    """SIGKILL while it trains: the fit dies too, and the next worker resumes it from its checkpoint."""
    more = [MEDIUM, OFTEN, "lease=1"]
    file, runs = written(tmp_path, ONE_TRIAL), tmp_path / "runs"
    study = load_study(file, None, more[:2], str(runs), {})
    filled(study, "filler")
    worker = start_sweep(file, runs, *more, "worker=0")
    try:
        until(lambda: list(runs.rglob("last.ckpt")), process=worker)
    finally:
        worker.kill()
        worker.wait()
    [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
    until(lambda: not is_training(folder))
    assert read_rows(folder / "rows.jsonl") == [] and left_to_measure(Run.of(study.config({"loops": 4}, 0)))
    second = start_sweep(file, runs, *more)
    _, err = second.communicate(timeout=600)
    assert second.returncode == 0, err
    [log] = runs.rglob("trial-00000.log")
    assert "resumed at" in log.read_text()
    [trial] = TrialQueue(study, open_storage(None, study.folder), "me", 60.0).trials()
    assert trial.state == TrialState.COMPLETE


@pytest.mark.parametrize("woken", ["at once", pytest.param("at the end", marks=pytest.mark.slow)])
def test_a_fit_that_outlives_its_workers_lease_is_waited_for(tmp_path, woken):
    """A worker that sleeps past its lease loses the trial, not the training: whoever takes the trial
    over resumes the run when its fit has ended."""
    more = [LONG, OFTEN, "lease=1"]
    file, runs = written(tmp_path, ONE_TRIAL), tmp_path / "runs"
    study = load_study(file, None, more[:2], str(runs), {})
    filled(study, "filler")
    first = start_sweep(file, runs, *more, "worker=0")
    second = None
    try:
        until(lambda: list(runs.rglob("last.ckpt")), process=first)
        first.send_signal(signal.SIGSTOP)  # its fit continues
        holder = queue_of(study).trials()[0].user_attrs["lease"][0]
        second = start_sweep(file, runs, *more, "worker=0")
        until(lambda: queue_of(study).trials()[0].user_attrs["lease"][0] != holder)
        if woken == "at once":
            first.send_signal(signal.SIGCONT)  # it learns that the trial is lost, and ends the fit
        else:
            second.wait(timeout=600)
            first.send_signal(signal.SIGCONT)
        for worker in (first, second):
            _, err = worker.communicate(timeout=600)
            assert worker.returncode == 0, err
    finally:
        for worker in (first, second):
            if worker is not None:
                worker.kill()
    [trial] = queue_of(study).trials()
    assert trial.state == TrialState.COMPLETE and not left_to_measure(Run.of(study.config({"loops": 4}, 0)))


@pytest.mark.parametrize(
    ("how", "number", "code", "start"),
    [
        ("alone", signal.SIGINT, 130, start_sweep),
        pytest.param("as a terminal", signal.SIGINT, 130, start_real_sweep, id="the real command"),
        ("as a terminal, twice", signal.SIGINT, 130, start_sweep),
        ("as a terminal", signal.SIGHUP, 129, start_sweep),
        ("alone", signal.SIGTERM, 143, start_sweep),
        ("alone", signal.SIGKILL, -signal.SIGKILL, start_sweep),  # the workers survive to release the trials
        pytest.param(
            *("alone", signal.SIGKILL, -signal.SIGKILL, start_real_sweep),
            marks=pytest.mark.slow,
            id="the real command, killed",
        ),
    ],
)
def test_a_stopped_sweep_stops_its_workers_and_releases_their_trials(tmp_path, how, number, code, start):
    more = [ENDLESS, OFTEN, UNEXPIRED]
    file, runs = written(tmp_path, TWO_TRIALS), tmp_path / "runs"
    running = start(file, runs, *more, "workers=2")
    try:
        until(lambda: len(list(runs.rglob("last.ckpt"))) == 2, process=running)
        # A terminal sends to all processes that the command has not put into a separate session.
        send = running.send_signal if how == "alone" else partial(os.killpg, running.pid)
        send(number)
        if "twice" in how:
            time.sleep(0.1)
            send(number)
        _, err = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == code and "Traceback" not in err, err
    assert err.count("the same command resumes") == (code > 0), err  # once, by the sweep alone
    for path in runs.rglob("last.ckpt"):
        until(lambda folder=path.parents[1]: not is_training(folder))
    study = load_study(file, None, more[:2], str(runs), {})
    queue = TrialQueue(study, open_storage(None, study.folder), "me", 60.0)
    until(lambda: all(is_expired(trial) for trial in queue.trials()))
    assert [trial.state for trial in queue.trials()] == [TrialState.RUNNING] * 2


def test_a_second_signal_does_not_keep_a_worker_from_releasing_its_trial(tmp_path):
    more = [ENDLESS, OFTEN, UNEXPIRED]
    file, runs = written(tmp_path, ONE_TRIAL), tmp_path / "runs"
    study = load_study(file, None, more[:2], str(runs), {})
    queue = filled(study, "filler")
    worker = start_sweep(file, runs, *more, "worker=0")
    try:
        until(lambda: list(runs.rglob("last.ckpt")), process=worker)
        with queue.storage.exclusive():  # so that it cannot finish before the second arrives
            worker.send_signal(signal.SIGTERM)
            [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
            until(lambda: not is_training(folder))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                worker.send_signal(number)
                time.sleep(0.1)
        _, err = worker.communicate(timeout=600)
    finally:
        worker.kill()
    assert worker.returncode == 143 and "Traceback" not in err, err
    assert is_expired(queue.trials()[0])
