"""The table of a study: every arm at every loop count, mean over seeds, and what failed."""

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from eltlab.common.text import format_table
from eltlab.runs import comparable_rows, result_table
from eltlab.runs.arm_table import arm_lines
from eltlab.studies.study_file import split_metric
from eltlab.studies.trials import TrialQueue, failed, reason

if TYPE_CHECKING:
    from pandas import DataFrame


def summarise(ledger: TrialQueue) -> list[str]:
    """Lines for people; all rows go to table.parquet and table.csv in the study's folder."""
    study, trials = ledger.study, ledger.trials()
    lines: list[str] = []
    folder = study.folder
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        table = result_table.load(folder)
        result_table.write_table(table, folder / "table.parquet")
        metric = next(iter(study.file.objectives))
        lines += tables(table[table["kind"] == "eval"], study.name, split_metric(metric)[0])
        if study.file.sampler != "grid":
            lines += best(ledger)
    for trial in failed(trials):
        why = reason(trial) or "no reason given"
        lines.append(f"failed: trial {trial.number}, {trial.user_attrs.get('arm', '?')}: {why}")
    return [*lines, *(["retry=true runs the failed once more"] if failed(trials) else [])]


def tables(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """The arms, each run at its latest: a table for each protocol where the runs were measured by several,
    that of the trials first."""
    lines = []
    protocols = rows["protocol"].unique()
    for protocol in protocols:
        if len(protocols) > 1:
            lines.append(f"protocol {protocol}")
        lines += arm_lines(
            comparable_rows.latest(rows[rows["protocol"] == protocol]), study, metric
        )
    return lines


def best(ledger: TrialQueue) -> list[str]:
    """The best trials of a search: of several objectives those that no other beats in all."""
    objectives = list(ledger.study.file.objectives)
    # One that was drawn twice is one.
    found = {str(trial.values): trial for trial in reversed(ledger.optuna.best_trials)}.values()
    rows = [["trial", "arm", *objectives]] + [
        [str(trial.number), trial.user_attrs["arm"], *(f"{value:.4g}" for value in trial.values)]
        for trial in sorted(found, key=lambda trial: trial.values)
    ]
    title = "Pareto-optimal trials" if len(objectives) > 1 else "the best trial"
    return [title, *format_table(rows)]
