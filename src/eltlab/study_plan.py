"""What a study will run, and what it costs, before it does."""

from collections import Counter

from eltlab import calibration
from eltlab.compute import budget_flops
from eltlab.machine import machine_of
from eltlab.plan import timed_bill
from eltlab.study import Planned, Study
from eltlab.text import columns, si, span

HEADERS = ["arm", "layers x loops", "width", "parameters", "MACs a sample", "images", "FLOPs"]


def plan_lines(study: Study, planned: list[Planned]) -> list[str]:
    """A line an arm of a grid, and the sum; for a sampler, what is known before it draws."""
    matched = "images" if study.budget is None else f"{si(study.budget)} training FLOPs"
    head = f"{study.name}: matched on {matched}, in {study.folder}"
    if not planned:
        file, base = study.file, study.base
        runs = (file.trials or 0) * len(file.seeds)
        flops = si(runs * (study.budget or budget_flops(base)))
        return [
            head,
            f"{file.trials} trials x {len(file.seeds)} seeds, about {flops} training FLOPs",
        ]
    machine = machine_of(study.base.trainer.accelerator, study.base.trainer.precision)
    seeds = Counter(study.arm(trial.cell, trial.config) for trial in planned)
    rows, total, seconds = [], 0.0, 0.0
    for arm, config in {study.arm(t.cell, t.config): t.config for t in planned}.items():
        costs = timed_bill(config, machine)
        total += costs["train_flops_total"] * seeds[arm]
        seconds += (costs["train_seconds"] or 0.0) * seeds[arm]
        split = f"{costs['unique_layers']} x {costs['loops']}"
        sizes = [si(costs["params_total"]), si(costs["macs_per_sample"]), f"{config.images:,}"]
        rows.append([arm, split, str(costs["width"]), *sizes, si(costs["train_flops_total"])])
    time = f", {span(seconds)} of training one after the other" if seconds else ""
    return [
        head,
        *columns([HEADERS, *rows]),
        f"{len(planned)} trials (seeds {study.file.seeds}), {si(total)} training FLOPs{time}",
        *calibration.note(study.base, machine),
    ]
