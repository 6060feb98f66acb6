"""Which loop schedules a run has no row of: the only place that answers this. Free of torch."""

import json
from dataclasses import replace
from typing import Any

from eltlab.config.keys import flatten
from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config, MetricsConfig
from eltlab.runs.row_files import read_rows, recorded_config, requested_loops
from eltlab.runs.run_folder import Run

# The columns of a row name the schedule and the threshold of halting; where images are stored changes
# no value. A row that differs from the configuration only in these keys is the same measurement.
IGNORED = ("sampler.loops", "sampler.halting", "metrics.images")


def default_schedules(config: Config) -> list[LoopSchedule]:
    """What fit measures: sampler.loops if it is set, else each of evaluate_loops."""
    if not config.evaluate:
        return []
    if config.sampler.loops is not None:
        return [config.sampler.loops]
    return list(config.evaluate_loops or [])  # never empty in a resolved configuration


def left_to_measure(run: Run) -> list[LoopSchedule]:
    """The schedules that fit would still measure once the run is trained to its end."""
    config = run.config
    return missing(run, config, default_schedules(config), config.seed, config.images)


def missing(
    run: Run,
    config: Config,
    schedules: list[LoopSchedule],
    seed: int,
    images_seen: int,
) -> list[LoopSchedule]:
    """The schedules that the run has no row of; the other arguments are those of `measured_rows`."""
    measured = measured_rows(run, config, seed, images_seen)
    return [
        schedule
        for schedule in schedules
        if tuple(requested_columns(schedule, config).values()) not in measured
    ]


def measured_rows(
    run: Run, config: Config, seed: int, images_seen: int, protocol: str | None = None
) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a run for this sampling seed after this many training images, by the values of their
    `requested_columns`.

    protocol: the id that a row must have. It is known only once the metrics are loaded; without it, a
    row must have the sampler.* and metrics.* keys of config.
    """
    return {
        (row["loop_schedule"], requested_loops(row)): row
        for row in read_rows(run.rows)
        if row["kind"] == "eval"
        and (row.get("sample_seed"), row["images_seen"]) == (seed, images_seen)
        and (row["protocol"] == protocol if protocol else _has_settings(row, config))
    }


def _has_settings(row: dict[str, Any], config: Config) -> bool:
    """Whether a row has the sampler.* and metrics.* keys of config."""
    # A key that is not in the row is newer than the row, which was therefore measured at its default.
    defaults = replace(config, sampler=type(config.sampler)(), metrics=MetricsConfig())
    found = flatten(defaults) | row.get("cfg", {})
    return all(
        found[key] == value
        for key, value in recorded_config(config).items()
        if key.startswith(("sampler.", "metrics.")) and key not in IGNORED
    )


def requested_columns(schedule: LoopSchedule, config: Config) -> dict[str, Any]:
    """loop_schedule (constant, 4to1 or a JSON list; may name halting), and loops if it is constant."""
    name = schedule if isinstance(schedule, str) else json.dumps(schedule)
    if config.sampler.halting is not None:
        return {"loop_schedule": f"{name}, halting {config.sampler.halting}", "loops": None}
    if isinstance(schedule, int):
        return {"loop_schedule": "constant", "loops": schedule}
    return {"loop_schedule": name, "loops": None}
