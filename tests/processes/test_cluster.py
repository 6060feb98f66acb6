"""Jobs of submitit's local executor, with real signals: they are queued again and end as if undisturbed.

The processes that submitit starts are forks of this one, except in the tests of real jobs.
"""

import os
import pickle
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import submitit
from optuna.trial import TrialState
from support.forked_modules import forked_popen
from support.run_outcomes import assert_same, wait_for_signals_at, weights_rows_metrics
from support.slurm import LOCAL, text
from support.small_studies import written
from support.tiny_run import TINY
from support.waiting import until

from eltlab import fit, sweep
from eltlab.common.errors import UserError
from eltlab.studies.storage import open_storage
from eltlab.studies.study import load_study
from eltlab.studies.trial_queue import TrialQueue

pytestmark = pytest.mark.integration

real_jobs = pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["forked", "real"]
)


def fork_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs and their tasks become forks of the process that submits them."""
    monkeypatch.setattr(submitit.local.local, "subprocess", SimpleNamespace(Popen=forked_popen))


def children(process: int) -> list[int]:
    """The job's tasks: the children of the local executor's controller, whose pid is the job's id."""
    try:
        listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in listed.split()]


def ids(printed: str) -> list[str]:
    found = re.search(r"submitted: (.*)", printed)
    assert found is not None, printed
    return found[1].split(", ")


def submitted(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, Path, Path]:
    """Submits fit as a job; returns the job's id, the folder of the run and the job's log."""
    capsys.readouterr()
    fit.main([*overrides, *LOCAL])
    printed = capsys.readouterr()
    [job] = ids(printed.err)
    run = Path(printed.out.removeprefix("run: ").strip())
    log = run / "slurm" / f"{job}_0_log.out"
    assert f"tail -F {log}" in printed.err
    return job, run, log


def test_a_real_job_trains_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*TINY, "evaluate=false", "trainer.grids=0", f"runs_dir={tmp_path}"]
    job, run, log = submitted(overrides, capsys)
    result = run / "slurm" / f"{job}_0_result.pkl"
    until(result.is_file, log=log)
    assert pickle.loads(result.read_bytes()) == ("success", None)
    fit.main([*overrides, *LOCAL])
    printed = capsys.readouterr()
    assert printed.err == "finished before, at 64 images\n" and str(run) in printed.out


def last_images(run: Path) -> int:
    """The images at the last complete line of metrics.csv, 0 without one."""
    lines = text(run / "metrics.csv").split("\n")[1:-1]
    return int(lines[-1].split(",")[1]) if lines else 0


@real_jobs
def test_a_job_that_is_stopped_is_queued_again_and_ends_as_if_undisturbed(
    real: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*TINY, "trainer.checkpoint_seconds=1000", "trainer.grids=0", "model.dropout=0.1"]
    overrides += ["trainer.validations=4", "evaluate_loops=[4]"]
    overrides += ["budget.images=3200"] if real else ["budget.images=160", "trainer.log_every=1"]
    fit.main([*overrides, f"runs_dir={tmp_path / 'calm'}"])
    if not real:
        fork_jobs(monkeypatch)
        wait_for_signals_at(monkeypatch, 4, 12)
    runs = tmp_path / "runs"
    job, run, log = submitted([*overrides, f"runs_dir={runs}"], capsys)
    until(lambda: last_images(run) >= (8 if real else 32), log=log)
    with pytest.raises(UserError, match="another process is training it"):
        fit.main([*overrides, *LOCAL, f"runs_dir={runs}"])
    os.kill(int(job), signal.SIGTERM)  # submitit passes it on to the job's task
    until(lambda: "resumed at" in text(log), log=log)
    resumed = last_images(run) if real else 88  # forks wait for their second signal at 96 images
    until(lambda: last_images(run) > resumed, log=log)
    [task] = children(int(job))
    os.kill(task, signal.SIGUSR2)
    until((run / "slurm" / f"{job}_0_result.pkl").is_file, log=log)
    logged = log.read_text()
    stops = re.findall(r"stopped by (\w+) at (\S+) images", logged)
    assert [name for name, _ in stops] == ["SIGTERM", "SIGUSR2"], logged
    assert re.findall(r"resumed at (\S+) images", logged) == [images for _, images in stops]
    assert pickle.loads((run / "slurm" / f"{job}_0_result.pkl").read_bytes()) == ("success", None)
    assert_same(weights_rows_metrics(tmp_path / "calm"), weights_rows_metrics(runs))


@real_jobs
def test_workers_in_jobs_finish_a_study_on_postgresql(
    real: bool,
    postgres: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of two jobs is stopped by a signal to all its processes: its trial is released, not failed."""
    if not real:
        fork_jobs(monkeypatch)
    study_text = "space:\n  optim.lr: [0.001, 0.002, 0.003]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=800", "evaluate_loops=[4]"]
    file, runs, url = written(tmp_path, study_text), tmp_path / "runs", postgres()
    command = [file, *more, f"runs_dir={runs}", f"storage={url}"]
    sweep.main([*command, *LOCAL, "workers=2"])
    printed = capsys.readouterr()
    jobs = ids(printed.err)
    assert len(jobs) == 2 and "journal" not in printed.err
    study = load_study(file, None, more, str(runs), {})
    logs = [study.folder / "slurm" / f"{job}_0_log.out" for job in jobs]

    def trial() -> list[int]:
        [*task] = children(int(jobs[0]))
        return [*task, *children(task[0])] if task else []

    until(lambda: len(trial()) == 2 and any(runs.rglob("metrics.csv")), log=logs[0])
    for process in reversed(trial()):
        os.kill(process, signal.SIGUSR2)
    until(lambda: "stopped by SIGUSR2" in text(logs[0]), log=logs[0])
    sweep.main([*command, "workers=0"])
    printed = capsys.readouterr()
    assert "lr0.001" in printed.out and printed.out.splitlines()[-1] == f"study: {study.folder}"
    storage = open_storage(url, study.folder, study=study.name)
    trials = TrialQueue(study, storage, "me", 60.0).trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    results = [log.with_name(log.name.replace("log.out", "result.pkl")) for log in logs]
    until(lambda: all(result.is_file() for result in results))
    assert "Requeued job" in logs[0].read_text()
    for path in (study.folder / "slurm").iterdir():  # the password is in none of them
        assert b"s3cret" not in path.read_bytes()
