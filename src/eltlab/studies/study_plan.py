"""What a study will run and what that costs, before it runs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from eltlab.common.machine_facts import find_machine
from eltlab.common.text import format_duration, format_si, format_table
from eltlab.config.cost.bill import timed_bill
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.measured_rates import rate_lines
from eltlab.studies.space import is_range
from eltlab.studies.study import Study, grid_trials

HEADERS = ["arm", "layers x loops", "width", "parameters", "MACs per sample", "images", "FLOPs"]


def plan_lines(study: Study) -> list[str]:
    """One line per arm of a grid, and the sum; for a sampler, what is known before it draws."""
    matched = "images" if study.budget is None else f"{format_si(study.budget)} training FLOPs"
    head = f"{study.name}: matched on {matched}, in {study.folder}"
    if study.file.sampler != "grid":
        trials, repeats = study.file.trials or 0, len(study.file.seeds)
        flops = format_si(trials * repeats * (study.budget or budget_flops(study.base)))
        last = f"{trials} trials x {repeats} seeds, about {flops} training FLOPs"
        return [head, *space_lines(study.file.space), last]
    planned = grid_trials(study)
    machine = find_machine(study.base.trainer.accelerator, study.base.trainer.precision)
    seeds = Counter(study.arm(trial.params, trial.config) for trial in planned)
    rows, total, seconds, names = [], 0.0, 0.0, set()
    for arm, config in {study.arm(t.params, t.config): t.config for t in planned}.items():
        costs = timed_bill(config, machine)
        # Arms that differ in how they are measured are one run, which is trained once.
        runs = 0 if config.name in names else seeds[arm]
        names.add(config.name)
        total += costs["train_flops_total"] * runs
        seconds += (costs["train_seconds"] or 0.0) * runs
        split = f"{costs['unique_layers']} x {costs['loops']}"
        sizes = map(format_si, (costs["params_total"], costs["macs_per_sample"]))
        flops = format_si(costs["train_flops_total"])
        rows.append([arm, split, str(costs["width"]), *sizes, f"{config.images:,}", flops])
    time = f", {format_duration(seconds)} of training one after the other" if seconds else ""
    return [
        head,
        *format_table([HEADERS, *rows]),
        f"{len(planned)} trials (seeds {study.file.seeds}), {format_si(total)} training FLOPs{time}",
        *tuning_cost(study, total),
        *rate_lines(study.base, machine),
    ]


def tuning_cost(study: Study, main: float) -> list[str]:
    """What choosing the values of each arm costs. main: training FLOPs of the study's trials."""
    tune = study.file.tune
    if tune is None:
        return []
    from eltlab.studies.tuning import tuned_arms, tuning_runs  # imports Optuna

    runs = tuning_runs(tuned_arms(study))
    flops = sum(budget_flops(trial.config) for trial in runs)
    candidates = "; ".join(f"{key} {describe_values(values)}" for key, values in tune.keys.items())
    return [
        f"{len(runs)} tuning runs before them (seeds {tune.seeds}, {tune.budget:g} of the budget), "
        f"{format_si(flops)} training FLOPs: {flops / main:.0%} more. Each arm chooses among {candidates}"
    ]


def space_lines(space: Mapping[str, Any]) -> list[str]:
    """The keys of a sampler's space that vary: their choices and ranges, with those of branches indented."""
    lines = []
    for key, values in space.items():
        lines.append(f"  {key}: {describe_values(values)}")
        if isinstance(values, Mapping) and not is_range(values):
            for choice, inner in values.items():
                lines += [f"  {line} (if {key}={choice})" for line in space_lines(inner or {})]
    return lines


def describe_values(values: Any) -> str:
    """The choices of a key, or its range."""
    if not is_range(values):
        return ", ".join(map(str, values))
    how = ", logarithmic" if values.get("log") else f", step {values['step']}" if values.get("step") else ""
    return f"{values['low']} to {values['high']}{how}"
