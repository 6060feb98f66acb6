"""The table of a study: every arm at every loop count, mean over seeds, and what failed."""

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from eltlab.analysis import comparable_rows
from eltlab.analysis.arm_table import arm_lines
from eltlab.common.text import format_si, format_table
from eltlab.runs import result_table
from eltlab.studies.study import Study
from eltlab.studies.study_file import split_metric
from eltlab.studies.trial_queue import TrialQueue, failed, failure_reason
from eltlab.studies.tuning import ArmState, can_be_chosen, describe_params, describe_tuning, tuning_flops

if TYPE_CHECKING:
    from pandas import DataFrame


def summarise(queue: TrialQueue) -> list[str]:
    """Lines to print. Writes all rows to table.parquet and table.csv in the study's folder."""
    study, trials = queue.study, queue.trials()
    lines = tuning_lines(study, queue.arms(trials))
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        table = result_table.load(study.folder)
        result_table.write_table(table, study.folder / "table.parquet")
        metric = next(iter(study.file.objectives))
        lines += arm_tables(table[table["kind"] == "eval"], study.name, split_metric(metric)[0])
        if study.file.sampler != "grid":
            lines += best_trials(queue)
    for trial in failed(trials):
        why = failure_reason(trial) or "no reason given"
        lines.append(f"failed: trial {trial.number}, {trial.user_attrs.get('arm', '?')}: {why}")
    return [*lines, *(["retry=true runs the failed trials again"] if failed(trials) else [])]


def tuning_lines(study: Study, arms: list[ArmState]) -> list[str]:
    """A line per arm: the values that it chose, the losses of all candidates, and what choosing cost."""
    if study.file.tune is None:
        return []
    tune, rows = study.file.tune, [["arm", "chosen", "training FLOPs", "held-out losses"]]
    for arm in arms:
        if arm.choice is None:
            why = "no choice yet" if can_be_chosen(arm.trials) else "no choice: a tuning run failed"
            rows.append([arm.name, why, format_si(arm.flops), ""])
            continue
        best, edges = arm.choice.chosen, arm.choice.at_edge(tune)
        chosen = "none: all diverged" if best is None else describe_params(best.params)
        edge = f"; {', '.join(edges)} at the edge of the grid" if edges else ""
        rows.append([arm.name, chosen, format_si(arm.flops), arm.choice.text + edge])
    runs = len({trial.number for arm in arms for trial in arm.trials})  # arms may share them
    cost = f"{runs} tuning runs, {format_si(tuning_flops(arms))} training FLOPs"
    what = f"chosen by {describe_tuning(tune)}; {cost}"
    return [what, *format_table(rows)]


def arm_tables(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """The arms, from the latest row of each run: one table per protocol, that of the trials first."""
    comparable_rows.report_sources(rows)
    lines = []
    protocols = rows["protocol"].unique()
    for protocol in protocols:
        if len(protocols) > 1:
            lines.append(f"protocol {protocol}")
        lines += arm_lines(comparable_rows.latest(rows[rows["protocol"] == protocol]), study, metric)
    return lines


def best_trials(queue: TrialQueue) -> list[str]:
    """The best trial of a search; with several objectives, the trials that no other trial dominates."""
    objectives = list(queue.study.file.objectives)
    # Keyed by values: equal draws are shown once.
    found = {str(trial.values): trial for trial in reversed(queue.optuna.best_trials)}.values()
    rows = [["trial", "arm", *objectives]] + [
        [str(trial.number), trial.user_attrs["arm"], *(f"{value:.4g}" for value in trial.values)]
        for trial in sorted(found, key=lambda trial: trial.values)
    ]
    title = "Pareto-optimal trials" if len(objectives) > 1 else "the best trial"
    return [title, *format_table(rows)]
