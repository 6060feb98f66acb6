"""The table of a study: every arm at every loop count, mean over seeds, and what failed."""

from typing import TYPE_CHECKING

from optuna.trial import TrialState

from eltlab import results
from eltlab.ledger import Ledger, failed, reason
from eltlab.study_file import at_loops
from eltlab.text import columns, si

if TYPE_CHECKING:
    from pandas import DataFrame


def summarise(ledger: Ledger) -> list[str]:
    """Lines for people; all rows go to table.parquet and table.csv in the study's folder."""
    study, trials = ledger.study, ledger.trials()
    lines: list[str] = []
    folder = study.folder
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        table = results.load(folder)
        results.write_table(table, folder / "table.parquet")
        metric = next(iter(study.file.objectives))
        lines += tables(table[table["kind"] == "eval"], study.name, at_loops(metric)[0])
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
        lines += arms(results.latest(rows[rows["protocol"] == protocol]), study, metric)
    return lines


def arms(rows: "DataFrame", study: str, metric: str) -> list[str]:
    """One line an arm: its size and cost, and the metric at each loop count, mean over seeds."""
    rows = rows[rows["loop_schedule"] == "constant"]
    if metric not in rows or rows[metric].isna().all():
        metric = "fd_classifier" if rows["fd_classifier"].notna().any() else "fid"
    counts = sorted(rows["loops"].unique())
    text = [["arm", "seeds", "layers x loops", "parameters", "training FLOPs", *map(at, counts)]]
    for name, group in rows.groupby("name", sort=True):
        first = group.iloc[0]
        cells = []
        for count in counts:
            found = group.loc[group["loops"] == count, metric].dropna()
            cells.append(f"{found.mean():.4g}" if len(found) else "")
        split = f"{first['unique_layers']:.0f} x {first['loops_train']:.0f}"
        size, flops = si(first["params_total"]), si(first["train_flops_total"])
        seeds = str(group["seed"].nunique())
        text.append([str(name).removeprefix(f"{study}/"), seeds, split, size, flops, *cells])
    return [f"{metric} at each loop count, mean over seeds", *columns(text)]


def best(ledger: Ledger) -> list[str]:
    """The best trials of a search: of several objectives those that no other beats in all."""
    objectives = list(ledger.study.file.objectives)
    # One that was drawn twice is one.
    found = {str(trial.values): trial for trial in reversed(ledger.optuna.best_trials)}.values()
    rows = [["trial", "arm", *objectives]] + [
        [str(trial.number), trial.user_attrs["arm"], *(f"{value:.4g}" for value in trial.values)]
        for trial in sorted(found, key=lambda trial: trial.values)
    ]
    title = "Pareto-optimal trials" if len(objectives) > 1 else "the best trial"
    return [title, *columns(rows)]


def at(loops: float) -> str:
    return f"at {loops:g}"
