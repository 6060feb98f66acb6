"""Whole studies: every trial runs, resumes and is recorded, however workers and trials end."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import until
from optuna.trial import TrialState
from studies import GRID, filled, opened, queue_of, written

from eltlab import sweep
from eltlab.common.signals import Requests
from eltlab.evaluation.missing_rows import left_to_measure
from eltlab.runs.result_table import load
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.studies import run_study, worker
from eltlab.studies.storage import open_storage
from eltlab.studies.study import load_study
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.trial_queue import TrialQueue, is_expired
from eltlab.studies.worker import Pruned, Watcher, Worker, last_lines, validation_curve
from eltlab.training.validation import LEVELS


def swept(tmp_path: Path, text: str = GRID, *arguments: str) -> int:
    """Runs the whole study in worker processes. Returns how many trials have completed."""
    sweep.main([written(tmp_path, text), f"runs_dir={tmp_path / 'runs'}", *arguments])
    return sum(t.state == TrialState.COMPLETE for t in queue_of(opened(tmp_path, text)).trials())


# --- whole studies --------------------------------------------------------------------------------


def test_a_study_runs_resumes_and_grows(tmp_path, capsys):
    assert swept(tmp_path, GRID, "workers=2") == 5
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"study: {tmp_path / 'runs' / 'small'}"
    for arm in ("loops1-final", "loops2-ilsd", "loops2-final", "loops4-ilsd", "loops4-final"):
        assert arm in printed.out
    table = load(tmp_path / "runs" / "small")
    rows = table[table["kind"] == "eval"]
    assert len(rows) == 1 + 2 * 2 + 2 * 4  # every arm at every loop count
    assert set(rows["study"]) == {"small"} and sorted(set(rows["trial"])) == [0, 1, 2, 3, 4]
    assert (tmp_path / "runs" / "small" / "table.parquet").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    # Finished: says so, and trains nothing.
    assert swept(tmp_path, GRID) == 5
    assert "is finished" in capsys.readouterr().err
    # A new seed: only its trials run.
    assert swept(tmp_path, GRID, "seeds=[0,1]") == 10
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    assert len(after) == 10 and all(after[path] == time for path, time in before.items())


def test_values_are_those_of_the_rows(tmp_path):
    swept(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n")
    for trial in queue_of(opened(tmp_path)).trials():
        run = opened(tmp_path).config(trial.user_attrs["cell"], 0)
        [row] = [
            r for r in read_rows(Run.of(run).rows) if r["kind"] == "eval" and r["loops"] == r["loops_train"]
        ]
        assert trial.values == [row["fd_classifier"]] and not left_to_measure(Run.of(run))


def test_a_sampler_averages_over_its_seeds(tmp_path):
    text = (
        "space:\n  loops: [2, 4]\nsampler: random\ntrials: 1\nseeds: [0, 1]\n"
        "objectives: {fd_classifier: minimize, params_total: minimize}\n"
    )
    assert swept(tmp_path, text) == 1
    [trial] = queue_of(opened(tmp_path, text)).trials()
    study = opened(tmp_path, text)
    values = study.values([study.config(trial.user_attrs["cell"], seed) for seed in (0, 1)])
    assert trial.values == values and values[1] == int(values[1])


def test_a_trial_that_fails_is_recorded_and_the_study_continues(tmp_path, capsys):
    """A learning rate that makes the loss infinite ends one trial of two; retry=true tries it again."""
    text = "space:\n  optim.lr: [0.001, 1.0e+30]\nseeds: [0]\n"
    sensitive = ["optim.warmup_images=0", "optim.clip=0", "budget.images=160"]
    for more, attempts in (((), 1), (("retry=true",), 2)):
        file = written(tmp_path, text)
        sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *sensitive, *more])
        study = load_study(file, None, sensitive, str(tmp_path / "runs"), {})
        states = [trial.state for trial in queue_of(study).trials()]
        assert states == [TrialState.COMPLETE] + [TrialState.FAIL] * attempts
        failed = queue_of(study).trials()[-1]
        assert "exit code 1" in failed.user_attrs["error"]
        assert "the loss was not finite" in failed.user_attrs["error"]
        printed = capsys.readouterr()
        assert "retry=true runs the failed trials again" in printed.out
        # The last line of the log follows its path.
        for line in (printed.out, printed.err):
            assert re.search(r"exit code 1; .*/trial-0000\d\.log: error: .*loss was not finite", line)


def test_a_trial_that_hangs_is_ended(tmp_path):
    text = "space:\n  loops: [4]\nseeds: [0]\nhours: 0.0008\n"
    endless = "budget.images=80000000"
    file = written(tmp_path, text + "matched: images\n")
    sweep.main([file, f"runs_dir={tmp_path / 'runs'}", endless])
    study = load_study(file, None, [endless], str(tmp_path / "runs"), {})
    [trial] = queue_of(study).trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"].startswith("stopped after hours=0.0008")
    [folder] = {path.parent for path in (tmp_path / "runs").rglob("config.yaml")}
    assert not alive(folder)


def test_the_hours_of_a_trial_are_those_of_all_its_seeds(tmp_path, monkeypatch):
    text = "space:\n  loops: [4]\nseeds: [0, 1]\nsampler: random\ntrials: 1\nhours: 1\n"
    queue, deadlines = queue_of(opened(tmp_path, text)), []
    monkeypatch.setattr(Worker, "run_fit", lambda *arguments: deadlines.append(arguments[-1]))
    Worker(queue, 1, Requests()).run_trial(queue.claim())
    assert len(deadlines) == 2 and len(set(deadlines)) == 1
    assert 0 < deadlines[0] - time.monotonic() < 3600


def test_last_lines_are_kept(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("\n".join(map(str, range(100))))
    assert last_lines(log).splitlines()[-1] == "99" and "\n79\n" not in last_lines(log)
    assert last_lines(tmp_path / "none") == ""


def test_equal_draws_of_two_workers_are_trained_once(tmp_path):
    """The second waits for the first, and gets its values."""
    text = "space:\n  loops: [2]\nsampler: random\ntrials: 4\nseeds: [0]\nmatched: images\n"
    file, more = written(tmp_path, text), ["budget.images=1600"]
    sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *more, "workers=2"])
    study = load_study(file, None, more, str(tmp_path / "runs"), {})
    trials = queue_of(study).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len({trial.values[0] for trial in trials}) == 1
    logs = [log.read_text() for log in (tmp_path / "runs").rglob("trial-*.log")]
    assert sum("finished before" in text for text in logs) == len(logs) - 1


# --- sharing the machine --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "gpus"), [("", []), ("-1", []), ("3", ["3"]), ("2,GPU-ab,", ["2", "GPU-ab"])]
)
def test_the_gpus_are_those_that_this_process_may_use(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run_study.visible_gpus() == gpus


@pytest.mark.parametrize(
    ("visible", "more", "threads", "storage", "workers"),
    [
        ("", [], 2, None, 4),  # as many as the threads leave room for
        ("", [], 3, None, 2),
        ("", [], 16, None, 1),
        ("", [], None, None, 1),
        ("0,1,2", [], 2, None, 4),  # trials on the CPU
        ("0,1,2", ["trainer.accelerator=auto"], 2, None, 3),  # one per GPU
        ("", ["trainer.accelerator=auto"], 2, None, 4),
        ("0,1,2", ["trainer.accelerator=auto"], 2, "sqlite:///a.db", 1),
    ],
)
def test_workers_are_one_per_gpu_or_as_many_as_the_cores_allow(
    tmp_path, monkeypatch, visible, more, threads, storage, workers
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(run_study, "cores", lambda: 8)
    study = opened(tmp_path, changes={"threads": threads}, overrides=more)
    assert run_study.default_workers(study, storage) == workers


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_worker_sees_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    seen = []
    for number in range(3):
        process = run_study.start_worker(number, [written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}"])
        environment = Path(f"/proc/{process.pid}/environ")
        until(environment.read_bytes)  # empty until the kernel has filled the new process's stack
        variables = environment.read_bytes().split(b"\0")
        process.kill()
        process.wait()
        seen += [each for each in variables if each.startswith(b"CUDA_VISIBLE_DEVICES=")]
    assert seen == [b"CUDA_VISIBLE_DEVICES=" + gpu for gpu in (b"5", b"7", b"5")]


@pytest.mark.parametrize(("threads", "each"), [(3, 3), (None, 4)])
def test_workers_share_the_cores(tmp_path, monkeypatch, threads, each):
    given = []
    monkeypatch.setattr(Worker, "run", lambda self: given.append(self.threads))
    monkeypatch.setattr(worker, "cores", lambda: 8)
    study = opened(tmp_path, changes={"threads": threads})
    worker.run_worker(study, SweepKeys(), workers=2)
    assert given == [each]


# --- pruning --------------------------------------------------------------------------------------


def test_a_pruner_sees_whole_validations_of_the_exit_it_watches(tmp_path):
    path = tmp_path / "validation.csv"
    lines = [
        f"{step},8,{exit},0.1,{step + exit + level},{level}"
        for step in (1, 2)
        for level in range(5)
        for exit in (1, 2)
    ]
    path.write_text("\n".join(["step,images,exit,level,loss,gap", *lines, ""]))
    assert validation_curve(path, "loss", 2) == [5.0, 6.0] and validation_curve(path, "gap", 1) == [
        2.0,
        2.0,
    ]
    path.write_text(path.read_text()[:-1])  # without a newline, the last line may be incomplete
    assert validation_curve(path, "loss", 2) == [5.0] and validation_curve(path, "loss", 1) == [
        4.0,
        5.0,
    ]
    assert validation_curve(tmp_path / "none", "loss", 2) == []


@pytest.mark.parametrize("objective", ["fd_classifier: minimize", "accuracy: maximize"])
def test_a_pruner_ends_the_trials_with_a_higher_loss(tmp_path, objective):
    """Whatever the objective: bad trials first, then good ones, and the worst last. Nothing is trained."""
    text = f"space:\n  optim.lr: [1, 2, 3, 4, 5, 6]\nseeds: [0]\nobjectives: {{{objective}}}\n"
    study = opened(tmp_path, f"{text}pruner: median\n")
    queue = filled(study)
    pruned = []
    for losses in ((5.0, 4.0), (5.1, 4.1), (5.2, 4.2), (1.0, 0.9), (1.1, 0.8), (9.0, 9.0)):
        claimed = queue.claim()
        config = study.config(claimed.params, 0, claimed.number)
        watcher = Watcher(queue, claimed, config)
        try:
            for count in (1, 2):
                validated(Run.of(config).folder / "validation.csv", losses[:count])
                watcher.prune_if_hopeless()
            queue.finish(claimed, [0.5])
        except Pruned:
            queue.prune(claimed)
            pruned.append(losses)
    assert pruned == [(9.0, 9.0)]


def validated(path: Path, losses: tuple[float, ...]) -> None:
    """A validation.csv with these losses at exit 4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{step},8,4,0.1,{loss},0" for step, loss in enumerate(losses, start=1) for level in range(LEVELS)
    ]
    path.write_text("\n".join(["step,images,exit,level,loss,gap", *lines, ""]))


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_a_trial_that_falls_behind_is_ended_early(tmp_path, capsys, pruner):
    """Three that learn, then three that hardly do."""
    text = (
        f"space:\n  optim.lr: [0.004, 0.003, 0.002, 1.0e-7, 1.1e-7, 1.2e-7]\nseeds: [0]\npruner: {pruner}\n"
    )
    file = written(tmp_path, text)
    longer = ["budget.images=4800", "trainer.validations=8"]
    # One after the other: the pruner compares with trials that have ended.
    sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *longer, "workers=1"])
    study = load_study(file, None, longer, str(tmp_path / "runs"), {})
    trials = queue_of(study).trials()
    states = [trial.state for trial in trials]
    assert states[0] == TrialState.COMPLETE and TrialState.PRUNED in states[3:]
    assert pruner == "hyperband" or states[:3] == [TrialState.COMPLETE] * 3
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            assert steps == [600 * n for n in range(1, 9)]  # images
        else:
            assert 0 < len(steps) < 8
            folder = Run.of(study.config(trial.user_attrs["cell"], 0)).folder
            assert read_rows(folder / "rows.jsonl") == [] and not alive(folder)
    assert "pruned" in capsys.readouterr().err
    # A study with pruned trials is finished.
    sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *longer])
    assert "is finished" in capsys.readouterr().err


# --- a storage that cannot be reached -------------------------------------------------------------


@pytest.mark.parametrize(("lease", "pruner"), [(4, "none"), (40, "median")])
def test_a_study_outlasts_a_server_that_is_away(tmp_path, postgres_server, lease, pruner):
    """It is away for six seconds while two trials train. Under a longer lease they continue training; under a
    shorter one another worker might have them, so they end, and resume from their checkpoints."""
    text = (
        "space:\n  loops: [2, 4]\n  optim.lr: [0.001, 0.002]\nseeds: [0]\nmatched: images\n"
        f"pruner: {pruner}\n"
    )
    more = ["budget.images=8000", "trainer.checkpoint_seconds=0.2", "trainer.validations=40"]
    file, runs, url = written(tmp_path, text), tmp_path / "runs", postgres_server.database()
    running = begin(file, runs, *more, "workers=2", f"lease={lease}", f"storage={url}")
    try:
        until(lambda: len(list(runs.rglob("last.ckpt"))) >= 2)
        postgres_server.stop()
        time.sleep(6)
        assert postgres_server.start()
        _, err = running.communicate(timeout=300)
    finally:
        running.terminate()
    assert running.returncode == 0 and "Traceback" not in err, err
    assert err.count("; trying again") == 1
    study = load_study(file, None, more, str(runs), {})
    trials = TrialQueue(study, open_storage(url, study.folder, study=study.name), "me", 60.0).trials()
    ended = {TrialState.COMPLETE} | ({TrialState.PRUNED} if pruner != "none" else set())
    assert len(trials) == 4 and {trial.state for trial in trials} <= ended
    logs = "".join(log.read_text() for log in runs.rglob("trial-*.log"))
    assert logs.count("resumed at") == (2 if lease == 4 else 0)


def test_a_server_that_stays_away_ends_the_study_with_a_message(tmp_path, postgres_server):
    """What was trained meanwhile is not lost: once the server is back, the same command records it."""
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=1600", "trainer.checkpoint_seconds=0.2"]
    file, runs, url = written(tmp_path, text), tmp_path / "runs", postgres_server.database()
    running = begin(file, runs, *more, "lease=2", f"storage={url}")
    until(lambda: list(runs.rglob("last.ckpt")))
    postgres_server.stop()
    _, err = running.communicate(timeout=120)
    assert running.returncode == 2, err
    # The sweep says that it waits, the worker and the sweep that they gave up.
    said = [line for line in err.splitlines() if line.startswith(("error:", "storage="))]
    assert len(said) == 3 and said[-1] == "error: a worker gave up; its message is above", err
    assert "Traceback" not in err and "refused" in said[1] and "s3cret" not in err
    assert postgres_server.start()
    again = begin(file, runs, *more, f"storage={url}")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err


# --- kills ----------------------------------------------------------------------------------------


def begin(file: str, runs: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "eltlab.sweep", file, f"runs_dir={runs}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_a_killed_worker_takes_its_trial_with_it_and_another_resumes_it(tmp_path):
    """SIGKILL while it trains: the fit dies too, and the next worker resumes it from its checkpoint."""
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=12000", "trainer.checkpoint_seconds=0.2", "lease=1"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    worker = begin(file, runs, *more, "worker=0")
    try:
        study = load_study(file, None, more[:2], str(runs), {})
        filled(study, "filler")
        until(lambda: list(runs.rglob("last.ckpt")))
    finally:
        worker.kill()
        worker.wait()
    [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
    until(lambda: not alive(folder))
    assert read_rows(folder / "rows.jsonl") == [] and left_to_measure(Run.of(study.config({"loops": 4}, 0)))
    second = begin(file, runs, *more)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    [log] = runs.rglob("trial-00000.log")
    assert "resumed at" in log.read_text()
    [trial] = TrialQueue(study, open_storage(None, study.folder), "me", 60.0).trials()
    assert trial.state == TrialState.COMPLETE


@pytest.mark.parametrize("woken", ["at once", "at the end"])
def test_a_fit_that_outlives_its_workers_lease_is_waited_for(tmp_path, woken):
    """A worker that sleeps past its lease loses the trial, not the training: whoever takes the trial
    over resumes the run when its fit has ended."""
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=12000", "trainer.checkpoint_seconds=0.2", "lease=1"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    study = load_study(file, None, more[:2], str(runs), {})
    filled(study, "filler")
    first = begin(file, runs, *more, "worker=0")
    second = None
    try:
        until(lambda: list(runs.rglob("last.ckpt")))
        first.send_signal(signal.SIGSTOP)  # its fit continues
        holder = queue_of(study).trials()[0].user_attrs["lease"][0]
        second = begin(file, runs, *more, "worker=0")
        until(lambda: queue_of(study).trials()[0].user_attrs["lease"][0] != holder)
        if woken == "at once":
            first.send_signal(signal.SIGCONT)  # it learns that the trial is lost, and ends the fit
        else:
            second.wait(timeout=300)
            first.send_signal(signal.SIGCONT)
        for worker in (first, second):
            _, err = worker.communicate(timeout=300)
            assert worker.returncode == 0, err
    finally:
        for worker in (first, second):
            if worker is not None:
                worker.kill()
    [trial] = queue_of(study).trials()
    assert trial.state == TrialState.COMPLETE and not left_to_measure(Run.of(study.config({"loops": 4}, 0)))


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("alone", signal.SIGINT, 130),
        ("as a terminal", signal.SIGINT, 130),
        ("as a terminal, twice", signal.SIGINT, 130),
        ("as a terminal", signal.SIGHUP, 129),
        ("alone", signal.SIGTERM, 143),
        ("alone", signal.SIGKILL, -signal.SIGKILL),  # the workers survive to release the trials
    ],
)
def test_a_stopped_sweep_stops_its_workers_and_releases_their_trials(tmp_path, how, number, code):
    text = "space:\n  loops: [2, 4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=4000000", "trainer.checkpoint_seconds=0.2"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    running = begin(file, runs, *more, "workers=2")
    try:
        until(lambda: len(list(runs.rglob("last.ckpt"))) == 2)
        # A terminal sends to all processes that the command has not put into a separate session.
        send = running.send_signal if how == "alone" else partial(os.killpg, running.pid)
        send(number)
        if "twice" in how:
            time.sleep(0.1)
            send(number)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == code and "Traceback" not in err, err
    assert err.count("the same command resumes") == (code > 0), err  # said once, by the sweep alone
    for path in runs.rglob("last.ckpt"):
        until(lambda folder=path.parents[1]: not alive(folder))
    study = load_study(file, None, more, str(runs), {})
    queue = TrialQueue(study, open_storage(None, study.folder), "me", 60.0)
    until(lambda: all(is_expired(trial) for trial in queue.trials()), seconds=30)
    assert [trial.state for trial in queue.trials()] == [TrialState.RUNNING] * 2


def test_a_second_signal_does_not_keep_a_worker_from_releasing_its_trial(tmp_path):
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=4000000", "trainer.checkpoint_seconds=0.2"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    study = load_study(file, None, more, str(runs), {})
    queue = filled(study, "filler")
    worker = begin(file, runs, *more, "worker=0")
    try:
        until(lambda: list(runs.rglob("last.ckpt")))
        with queue.storage.exclusive():  # so that it cannot finish before the second arrives
            worker.send_signal(signal.SIGTERM)
            [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
            until(lambda: not alive(folder))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                worker.send_signal(number)
                time.sleep(0.1)
        _, err = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 143 and "Traceback" not in err, err
    assert is_expired(queue.trials()[0])


def alive(folder: Path) -> bool:
    """Whether a process trains the run."""
    from eltlab.common.files import file_lock

    with file_lock(folder / ".lock", wait=False) as mine:
        return not mine
