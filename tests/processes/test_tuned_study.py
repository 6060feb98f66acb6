"""A tuned study under kills: every arm finds its own best learning rate, and its rows say how.

The two arms differ in weight decay only, which AdamW applies as a factor 1 − lr·decay on the weights. At a
decay of 300 the rate 0.01 multiplies them by −2 at every step: the run diverges, and the best rate is 0.001.
Without decay the training is so short that the higher rate is better.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from support.commands import Command
from support.small_studies import written
from support.sweeps import start_sweep
from support.waiting import until

from eltlab.common.errors import Diverged
from eltlab.runs.result_table import load
from eltlab.runs.run_folder import Run
from eltlab.studies.run_study import fill_queue
from eltlab.studies.study import load_study
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.trial_queue import TrialQueue, is_tuning
from eltlab.studies.tuning import tuned_arms
from eltlab.studies.validation_losses import tuning_losses
from eltlab.training.fit import fit

pytestmark = pytest.mark.integration

STUDY = """
space:
  arm:
    light: {optim.weight_decay: [0.0]}
    heavy: {optim.weight_decay: [300.0]}
seeds: [0, 1]
matched: images
tune:
  keys: {optim.lr: [0.001, 0.01]}
  budget: 0.5
  by: mean
"""
MORE = ["objective=diffusion", "loops=2", "evaluate_loops=[2]", "optim.warmup=0", "budget.images=480"]
BEST = {"light": 0.01, "heavy": 0.001}


@pytest.mark.parametrize("storage", ["journal", pytest.param("postgres", marks=pytest.mark.slow)])
def test_both_arms_find_their_best_rate_under_kills(storage, tmp_path, monkeypatch, request):
    url = request.getfixturevalue("postgres")() if storage == "postgres" else None
    file, runs = written(tmp_path, STUDY), tmp_path / "runs"
    more = [*MORE, "lease=1", *([f"storage={url}"] if url else [])]
    study = load_study(file, None, MORE, str(runs), {})
    queue = fill_queue(study, SweepKeys(storage=url), 1)
    with monkeypatch.context() as patch:
        kill_between_the_trials_of_an_arm(patch)
        worker = start_sweep(file, runs, *more, "worker=0")
        kill_when(lambda: is_running(queue, tuning=True), worker)
        worker = start_sweep(file, runs, *more, "worker=0")
        assert worker.wait() == -signal.SIGKILL, worker.output()  # it has killed itself
    assert [is_tuning(trial) for trial in queue.trials()] == [True] * 4 + [False]
    worker = start_sweep(file, runs, *more, "worker=0")
    kill_when(lambda: is_running(queue, tuning=False), worker)
    assert queue.left()
    sweep = start_sweep(file, runs, *more, "workers=2")
    out, err = sweep.communicate()
    assert sweep.returncode == 0 and "Traceback" not in err, err

    trials = queue.trials()
    tuning = [trial for trial in trials if is_tuning(trial)]
    main = [trial for trial in trials if not is_tuning(trial)]
    assert {trial.state for trial in tuning} == {TrialState.PRUNED} and len(tuning) == 4
    assert {trial.state for trial in main} == {TrialState.COMPLETE} and len(main) == 4
    exhaustive = train_every_candidate(study, tmp_path / "alone")
    for trial in tuning:
        stored = trial.user_attrs["losses"]
        stored = None if stored is None else {int(exit): loss for exit, loss in stored.items()}
        assert stored == exhaustive[trial.user_attrs["arm"], trial.user_attrs["cell"]["optim.lr"]]
    assert exhaustive["heavy", 0.01] is None
    assert mean(exhaustive["light", 0.01]) < mean(exhaustive["light", 0.001])

    rows = load(study.folder)
    rows = rows[rows["kind"] == "eval"]
    assert sorted(zip(rows["name"], rows["seed"], strict=True)) == [
        (f"{study.name}/{arm}", seed) for arm in ("heavy", "light") for seed in (0, 1)
    ]
    for _, row in rows.iterrows():
        arm = row["name"].rpartition("/")[2]
        assert json.loads(row["tuned"]) == {"optim.lr": BEST[arm]} and row["cfg.optim.lr"] == BEST[arm]
        assert not row["cfg.data.tuning"]
        assert row["tuned_on"].startswith(
            "held-out loss on a tenth of the training split, mean over exits, tuning seed 100, "
            "0.5 of the budget; optim.lr=0.001: "
        )
        assert row["tuned_on"].endswith("optim.lr=0.01: diverged") == (arm == "heavy")
    assert "4 tuning runs, " in out and out.count("optim.lr at the edge of the grid") == 2


def kill_between_the_trials_of_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies when one of the two trials of an arm with a choice is enqueued."""
    enqueue = TrialQueue._enqueue

    def enqueue_and_die(self, planned, **more):
        enqueue(self, planned, **more)
        if "tuned_on" in more:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TrialQueue, "_enqueue", enqueue_and_die)


def kill_when(condition: Callable[[], bool], worker: Command) -> None:
    """Kills a worker, and so its fit."""
    until(condition, process=worker)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL


def is_running(queue: TrialQueue, tuning: bool) -> bool:
    """Whether a trial of this kind is running, and a run of its kind has started to train."""
    running = [t.state == TrialState.RUNNING for t in queue.trials() if is_tuning(t) == tuning]
    runs = "tuning/*/*/config.yaml" if tuning else "[hl]*/*/config.yaml"  # heavy and light
    return any(running) and any(queue.study.folder.glob(runs))


def train_every_candidate(study, place) -> dict[tuple[str, float], dict[int, float] | None]:
    """The losses of every arm at every rate, each trained without a study."""
    found = {}
    for arm in tuned_arms(replace(study, runs_dir=str(place))):
        for trial in arm.tuning:
            try:
                fit(trial.config)
                losses = tuning_losses(trial.config)
            except Diverged:
                losses = None
            found[arm.name, trial.config.optim.lr] = losses
            assert not Run.of(trial.config).rows.exists()
    return found


def mean(losses: dict[int, float] | None) -> float:
    assert losses is not None
    return sum(losses.values()) / len(losses)
