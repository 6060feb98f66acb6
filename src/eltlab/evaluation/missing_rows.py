"""Which measurements a run has no row of: the only place that answers this. Free of torch."""

import json
from dataclasses import replace
from typing import Any, NamedTuple

from eltlab.config.identity import MEASURING
from eltlab.config.keys import flatten
from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config, MetricsConfig
from eltlab.runs.row_files import SETTINGS, read_rows, recorded_config, requested_loops, setting_columns
from eltlab.runs.run_folder import Run

# Columns of a row have the measuring keys; where images are stored changes no value. A row that differs from
# the configuration only in these keys is under the same protocol.
IGNORED = (*MEASURING, "sampler.batch", "metrics.images")


class Request(NamedTuple):
    """One row to measure: a loop schedule, under the measuring keys of a configuration."""

    config: Config
    schedule: LoopSchedule


def default_schedules(config: Config) -> list[LoopSchedule]:
    """What fit measures: sampler.loops if it is set, else each of evaluate_loops."""
    if not config.evaluate:
        return []
    if config.sampler.loops is not None:
        return [config.sampler.loops]
    return list(config.evaluate_loops or [])  # never empty in a resolved configuration


def default_requests(config: Config) -> list[Request]:
    """The rows of `default_schedules`."""
    return [Request(config, schedule) for schedule in default_schedules(config)]


def left_to_measure(run: Run) -> list[Request]:
    """What fit would still measure once the run is trained to its end."""
    return missing(run, default_requests(run.config), run.config.seed, run.config.images)


def missing(run: Run, requests: list[Request], seed: int, images_seen: int) -> list[Request]:
    """The requests that the run has no row of; the other arguments are those of `measured_rows`."""
    rows = measured_rows(run, requests, seed, images_seen)
    return [request for request, row in zip(requests, rows, strict=True) if row is None]


def measured_rows(
    run: Run, requests: list[Request], seed: int, images_seen: int, protocol: str | None = None
) -> list[dict[str, Any] | None]:
    """The row of each request for this sampling seed after this many training images, or None.

    protocol: the id that a row must have. It is known only once the metrics are loaded; without it, a
    row must have the sampler.* and metrics.* keys of the configuration.
    """
    rows = [
        row | {"loops": requested_loops(row)}
        for row in read_rows(run.rows)
        if row["kind"] == "eval"
        and (row.get("sample_seed"), row["images_seen"]) == (seed, images_seen)
        and protocol in (None, row["protocol"])
    ]

    def is_row_of(row: dict[str, Any], request: Request) -> bool:
        wanted = requested_columns(request)
        same = all(row.get(column) == value for column, value in wanted.items())
        return same and (protocol is not None or _has_keys(row, request.config))

    return [next((row for row in rows if is_row_of(row, request)), None) for request in requests]


def _has_keys(row: dict[str, Any], config: Config) -> bool:
    """Whether a row has the sampler.* and metrics.* keys of config."""
    # A key that is not in the row is newer than the row, which was therefore measured at its default.
    defaults = replace(config, sampler=type(config.sampler)(), metrics=MetricsConfig())
    found = flatten(defaults) | row.get("cfg", {})
    return all(
        found[key] == value
        for key, value in recorded_config(config).items()
        if key.startswith(("sampler.", "metrics.")) and key not in IGNORED
    )


def requested_columns(request: Request) -> dict[str, Any]:
    """loop_schedule (constant, 4to1 or a JSON list; may name halting), loops if it is constant, and the
    columns of the other measuring keys."""
    config, schedule = request
    name = schedule if isinstance(schedule, str) else json.dumps(schedule)
    columns = {"loop_schedule": name, "loops": None} | setting_columns(config)
    if config.sampler.halting is not None:
        # The mean over a batch decides when its pass halts, so the batch is a part of the schedule.
        halting = f"halting {config.sampler.halting} over {config.sampler.batch}"
        return columns | {"loop_schedule": f"{name}, {halting}"}
    if isinstance(schedule, int):
        return columns | {"loop_schedule": "constant", "loops": schedule}
    return columns


def changed_settings(request: Request, own: Config) -> dict[str, Any]:
    """The columns of SETTINGS in which a request differs from the run's own configuration."""
    before, after = setting_columns(own), setting_columns(request.config)
    return {column: after[column] for column in SETTINGS if after[column] != before[column]}
