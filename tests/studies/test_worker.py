"""Workers: how they run, end and watch their trials."""

import math
import re
import time
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.small_studies import filled, opened, queue_of
from support.sweeps import is_training, run_sweep

from eltlab.common.signals import Requests
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.studies import worker
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.worker import Pruned, Watcher, Worker, last_lines
from eltlab.training.validation import LEVELS


@pytest.mark.integration
def test_a_trial_that_fails_is_recorded_and_the_study_continues(tmp_path):
    """A learning rate that makes the loss infinite ends one trial of two; retry=true tries it again."""
    text = "space:\n  optim.lr: [0.001, 1.0e+30]\nseeds: [0]\n"
    sensitive = ["optim.warmup=0", "optim.clip=0", "budget.images=160"]
    for more, attempts in (((), 1), (("retry=true",), 2)):
        done = run_sweep(tmp_path, text, *sensitive, *more)
        trials = queue_of(opened(tmp_path, text, overrides=sensitive)).trials()
        assert [t.state for t in trials] == [TrialState.COMPLETE] + [TrialState.FAIL] * attempts
        assert "exit code 3" in trials[-1].user_attrs["error"]
        assert "the loss was not finite" in trials[-1].user_attrs["error"]
        assert "retry=true runs the failed trials again" in done.stdout
        # The last line of the log follows its path.
        for printed in (done.stdout, done.stderr):
            assert re.search(r"exit code 3; .*/trial-0000\d\.log: error: .*loss was not finite", printed)


@pytest.mark.integration
def test_a_trial_that_hangs_is_ended(tmp_path):
    text = "space:\n  loops: [4]\nseeds: [0]\nhours: 0.0008\nmatched: images\n"
    endless = "budget.images=80000000"
    run_sweep(tmp_path, text, endless)
    study = opened(tmp_path, text, overrides=[endless])
    [trial] = queue_of(study).trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"].startswith("stopped after hours=0.0008")
    folder = Run.of(study.config({"loops": 4}, 0)).folder
    assert (folder / "config.yaml").exists() and not is_training(folder)


def test_the_hours_of_a_trial_are_those_of_all_its_seeds(tmp_path, monkeypatch):
    text = "space:\n  loops: [4]\nseeds: [0, 1]\nsampler: random\ntrials: 1\nhours: 1\n"
    queue, deadlines = queue_of(opened(tmp_path, text)), []
    monkeypatch.setattr(Worker, "run_fit", lambda *arguments: deadlines.append(arguments[-1]))
    Worker(queue, 1, Requests()).run_trial(queue.claim())
    assert len(deadlines) == 2 and len(set(deadlines)) == 1
    assert 0 < deadlines[0] - time.monotonic() < 3600


def test_a_lease_is_renewed_while_the_trial_trains(tmp_path, monkeypatch):
    queue = filled(opened(tmp_path), lease=1.0)
    renewed, start = [], time.monotonic()
    monkeypatch.setattr(queue, "renew", lambda claimed: renewed.append(claimed) or True)

    class Fit:
        def poll(self) -> int | None:
            """Trains until the lease is renewed, or for three leases."""
            return 0 if renewed or time.monotonic() - start > 3 else None

    monkeypatch.setattr(worker, "fork_fit", lambda *_: Fit())
    claimed = queue.claim()
    Worker(queue, 1, Requests()).run_fit(claimed, queue.study.config({}, 0), tmp_path / "log", math.inf)
    assert renewed == [claimed]


def test_last_lines_are_kept(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("\n".join(map(str, range(100))))
    assert last_lines(log).splitlines()[-1] == "99" and "\n79\n" not in last_lines(log)
    assert last_lines(tmp_path / "none") == ""


@pytest.mark.parametrize(("threads", "each"), [(3, 3), (None, 4)])
def test_workers_share_the_cores(tmp_path, monkeypatch, threads, each):
    given = []
    monkeypatch.setattr(Worker, "run", lambda self: given.append(self.threads))
    monkeypatch.setattr(worker, "cores", lambda: 8)
    study = opened(tmp_path, changes={"threads": threads})
    worker.run_worker(study, SweepKeys(), workers=2)
    assert given == [each]


# --- pruning --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "pruner",
    [
        pytest.param("median", marks=pytest.mark.integration),
        pytest.param("hyperband", marks=pytest.mark.slow),
    ],
)
def test_a_trial_that_falls_behind_is_ended_early(tmp_path, pruner):
    """Three that learn, then three that hardly do."""
    text = (
        f"space:\n  optim.lr: [0.004, 0.003, 0.002, 1.0e-7, 1.1e-7, 1.2e-7]\nseeds: [0]\npruner: {pruner}\n"
    )
    longer = ["budget.images=1600", "trainer.validations=8"]
    # One after the other: the pruner compares with trials that have ended.
    done = run_sweep(tmp_path, text, *longer, "workers=1")
    study = opened(tmp_path, text, overrides=longer)
    trials = queue_of(study).trials()
    states = [trial.state for trial in trials]
    assert states[0] == TrialState.COMPLETE and TrialState.PRUNED in states[3:]
    assert pruner == "hyperband" or states[:3] == [TrialState.COMPLETE] * 3
    for trial in trials:
        steps = sorted(trial.intermediate_values)
        if trial.state == TrialState.COMPLETE:
            assert steps == [200 * n for n in range(1, 9)]  # images
        else:
            assert 0 < len(steps) < 8
            folder = Run.of(study.config(trial.user_attrs["cell"], 0)).folder
            assert read_rows(folder / "rows.jsonl") == [] and not is_training(folder)
    assert "pruned" in done.stderr
    # A study with pruned trials is finished.
    assert "is finished" in run_sweep(tmp_path, text, *longer).stderr
