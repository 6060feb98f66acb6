"""The studies of sweeps/, cut to a few steps per trial, and what holds for their trials."""

from pathlib import Path

from optuna.trial import TrialState

from eltlab.runs.result_table import load
from eltlab.runs.row_files import requested_loops
from eltlab.studies.study import Study
from support.small_studies import queue_of

SMALL = ["budget.images=128", "metrics.samples=40", "sampler.steps=2", "trainer.validations=2"]


def check_trials(study: Study, folder: Path) -> None:
    """Asserts that both trials are complete and have a row per loop count and schedule."""
    trials = [t for t in queue_of(study).trials() if "forbidden" not in t.user_attrs]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2, [
        trial.user_attrs.get("error") for trial in trials
    ]
    rows = load(folder)
    rows = rows[rows["kind"] == "eval"]
    assert set(rows["study"]) == {study.name} and set(rows["trial"]) == {t.number for t in trials}
    for trial in trials:
        found = rows[rows["trial"] == trial.number]
        for _, own in found.groupby("seed"):
            requested = [requested_loops(row) or row["loop_schedule"] for row in own.to_dict("records")]
            assert requested == own["cfg.evaluate_loops"].iloc[0]
            assert set(range(1, int(own["loops_train"].iloc[0]) + 1)) <= set(own["loops"])
        if study.file.sampler != "grid":  # which trains all seeds in one trial
            assert set(found["seed"]) == set(study.file.seeds)
        assert len(trial.values) == len(study.file.objectives)
