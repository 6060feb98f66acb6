"""What a run still lacks: the requested loop schedules that it has no row of. Free of torch."""

import json
from typing import Any

from eltlab.config.schedules import LoopSchedule
from eltlab.config.schema import Config
from eltlab.runs.row_facts import recorded_config
from eltlab.runs.row_files import read_rows, requested_loops
from eltlab.runs.run_folder import Run


def default_schedules(config: Config) -> list[LoopSchedule]:
    """What fit measures: sampler.loops if it is set, else each of evaluate_loops."""
    if not config.evaluate:
        return []
    if config.sampler.loops is not None:
        return [config.sampler.loops]
    assert config.evaluate_loops  # filled in by the rules
    return list(config.evaluate_loops)


def missing(
    run: Run,
    config: Config,
    schedules: list[LoopSchedule],
    seed: int,
    images_seen: int,
    protocol: str | None = None,
) -> list[LoopSchedule]:
    """Those of the schedules that the run has no row of, at this point of training and for this seed.

    protocol: the id that a row must have. It is known only once the metrics are loaded; without it, a
    row must have the sampler.* and metrics.* keys of config.
    """
    measured = {
        (row["loop_schedule"], requested_loops(row))
        for row in read_rows(run.rows)
        if row["kind"] == "eval"
        and (row["sample_seed"], row["images_seen"]) == (seed, images_seen)
        and (row["protocol"] == protocol if protocol else measured_alike(row, config))
    }
    return [each for each in schedules if _named(each, config) not in measured]


def left_to_measure(run: Run) -> list[LoopSchedule]:
    """What fit would still measure once the run is trained to its end."""
    config = run.config
    return missing(run, config, default_schedules(config), config.seed, config.images)


def measured_alike(row: dict[str, Any], config: Config) -> bool:
    """Whether a row was sampled and measured by the settings of config; keys that are newer than the
    row have their default in it."""
    known = json.loads(json.dumps(recorded_config(config)))  # as the row has it: tuples are lists
    keys = [key for key in known if key.startswith(("sampler.", "metrics."))]
    return all(row["cfg"].get(key, known[key]) == known[key] for key in keys)


def requested_columns(schedule: LoopSchedule, config: Config) -> dict[str, Any]:
    """The columns that name what was requested. Loops that a schedule spends are known after sampling."""
    name, loops = _named(schedule, config)
    return {"loop_schedule": name, "loops": loops}


def _named(schedule: LoopSchedule, config: Config) -> tuple[str, int | None]:
    name = schedule_name(schedule, config.sampler.halting)
    return name, schedule if isinstance(schedule, int) and name == "constant" else None


def schedule_name(schedule: LoopSchedule, halting: float | None) -> str:
    """The column loop_schedule: constant, 4to1, or a JSON list; "…, halting τ" if passes may halt."""
    name = schedule if isinstance(schedule, str) else json.dumps(schedule)
    if halting is not None:
        return f"{name}, halting {halting}"
    return "constant" if isinstance(schedule, int) else name
