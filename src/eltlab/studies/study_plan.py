"""What a study will run and what that costs, before it runs."""

from collections import Counter

from eltlab.common.machine_facts import find_machine
from eltlab.common.text import format_duration, format_si, format_table
from eltlab.config.cost.bill import timed_bill
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.measured_rates import rate_lines
from eltlab.studies.study import Study, grid_trials

HEADERS = ["arm", "layers x loops", "width", "parameters", "MACs per sample", "images", "FLOPs"]


def plan_lines(study: Study) -> list[str]:
    """One line per arm of a grid, and the sum; for a sampler, what is known before it draws."""
    matched = "images" if study.budget is None else f"{format_si(study.budget)} training FLOPs"
    head = f"{study.name}: matched on {matched}, in {study.folder}"
    if study.file.sampler != "grid":
        trials, repeats = study.file.trials or 0, len(study.file.seeds)
        flops = format_si(trials * repeats * (study.budget or budget_flops(study.base)))
        return [head, f"{trials} trials x {repeats} seeds, about {flops} training FLOPs"]
    planned = grid_trials(study)
    machine = find_machine(study.base.trainer.accelerator, study.base.trainer.precision)
    seeds = Counter(study.arm(trial.params, trial.config) for trial in planned)
    rows, total, seconds = [], 0.0, 0.0
    for arm, config in {study.arm(t.params, t.config): t.config for t in planned}.items():
        costs = timed_bill(config, machine)
        total += costs["train_flops_total"] * seeds[arm]
        seconds += (costs["train_seconds"] or 0.0) * seeds[arm]
        split = f"{costs['unique_layers']} x {costs['loops']}"
        sizes = map(format_si, (costs["params_total"], costs["macs_per_sample"]))
        flops = format_si(costs["train_flops_total"])
        rows.append([arm, split, str(costs["width"]), *sizes, f"{config.images:,}", flops])
    time = f", {format_duration(seconds)} of training one after the other" if seconds else ""
    return [
        head,
        *format_table([HEADERS, *rows]),
        f"{len(planned)} trials (seeds {study.file.seeds}), {format_si(total)} training FLOPs{time}",
        *rate_lines(study.base, machine),
    ]
