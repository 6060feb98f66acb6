"""The one function that says what a run still lacks, for runs of every kind of configuration."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_run import tiny

from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config
from eltlab.evaluation.missing_rows import (
    Request,
    changed_settings,
    default_schedules,
    left_to_measure,
    measured_rows,
    missing,
    requested_columns,
)
from eltlab.runs.row_files import append_rows, config_facts
from eltlab.runs.run_folder import Run


def write(run: Run, config: Config, *schedules: LoopSchedule, **columns: Any) -> None:
    """Writes the rows that an evaluation under config writes. columns: values that replace theirs."""
    row = config_facts(config) | {
        "kind": "eval",
        "run": "a/0",
        "protocol": "a",
        "protocol_text": "{}",
        "images_seen": config.images,
        "sample_seed": config.seed,
    }
    for schedule in schedules:
        requested = requested_columns(Request(config, schedule))
        if requested["loops"] is None:
            requested["loops"] = 2.5  # the mean that ran: a result, whatever was requested
        append_rows(run.rows, [row | requested | columns])


def left(run: Run) -> list[LoopSchedule]:
    return [request.schedule for request in left_to_measure(run)]


def lacks(
    run: Run,
    config: Config,
    schedules: list[LoopSchedule],
    seed: int,
    images: int,
    protocol: str | None = None,
) -> list[LoopSchedule]:
    """The schedules of requests under config that are missing."""
    requests = [Request(config, schedule) for schedule in schedules]
    rows = measured_rows(run, requests, seed, images, protocol)
    return [schedule for schedule, row in zip(schedules, rows, strict=True) if row is None]


def run_of(tmp_path: Path, *overrides: str) -> Run:
    return Run.of(tiny(f"runs_dir={tmp_path}", *overrides))


def test_every_loop_count_is_missing_until_it_has_a_row(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert left(run) == [1, 2, 3, 4]
    write(run, run.config, 3, 1)
    assert left(run) == [2, 4]
    write(run, run.config, 2, 4)
    assert left(run) == []


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampler.loops=4"],
        ["sampler.batch=3"],
        ["sampler.loops=2"],
        ["sampler.loops=4to1"],
        ["sampler.loops=[4,4,2,1]"],
        ["sampler.halting=0.1"],
        ["sampler.loops=4to1", "sampler.halting=0.1"],
    ],
)
def test_a_run_with_any_schedule_is_finished_once_it_is_measured(
    tmp_path: Path, overrides: list[str]
) -> None:
    run = run_of(tmp_path, *overrides)
    assert left(run) == default_schedules(run.config) != []
    write(run, run.config, *default_schedules(run.config))
    assert left(run) == []


def test_rows_under_halting_are_not_those_without_it(tmp_path: Path) -> None:
    run, halting = run_of(tmp_path), tiny("sampler.halting=0.1")
    write(run, halting, 1, 2, 3, 4)
    assert left(run) == [1, 2, 3, 4]
    assert lacks(run, halting, [1, 4], 0, run.config.images) == []
    other = tiny("sampler.halting=0.2")
    assert lacks(run, other, [1, 4], 0, run.config.images) == [1, 4]


def test_it_does_not_matter_which_key_requested_a_loop_count(tmp_path: Path) -> None:
    """`evaluate loops=4` and `fit sampler.loops=4` make the same row, so it is never written twice."""
    run = run_of(tmp_path)
    write(run, run.config, 4)
    assert left(run_of(tmp_path, "sampler.loops=4")) == []


def test_another_seed_number_of_samples_or_point_of_training_is_missing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    config, images = run.config, run.config.images
    write(run, config, 1, 2, 3, 4)
    assert lacks(run, config, [1, 2], 1, images) == [1, 2]
    assert lacks(run, config, [1, 2], 0, images // 2) == [1, 2]
    more = replace(config, metrics=replace(config.metrics, samples=40))
    assert lacks(run, more, [1, 2], 0, images) == [1, 2]
    other = replace(config, sampler=replace(config.sampler, name="ddim"))
    assert lacks(run, other, [1, 2], 0, images) == [1, 2]
    moved = replace(config, metrics=replace(config.metrics, images="elsewhere"))
    assert lacks(run, moved, [1, 2], 0, images) == []


def test_a_protocol_decides_if_it_is_known(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    config, images = run.config, run.config.images
    write(run, config, 1, 2, 3, 4)
    assert lacks(run, config, [1, 2], 0, images, "a") == []
    assert lacks(run, config, [1, 2], 0, images, "b") == [1, 2]


def test_a_row_without_a_newer_key_has_its_default(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    old = config_facts(run.config)["cfg"]
    del old["metrics.weights"], old["metrics.reference"]
    write(run, run.config, 1, 2, 3, 4, cfg=old)
    assert left(run) == []
    config = replace(run.config, metrics=replace(run.config.metrics, reference=50))
    assert lacks(run, config, [1, 2], 0, config.images) == [1, 2]


def test_a_row_without_a_configuration_is_no_measurement(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    row = dict.fromkeys(("name", "run", "seed", "data", "protocol", "protocol_text"), "a")
    row |= {"kind": "eval", "loop_schedule": "constant", "loops": 1, "images_seen": 64}
    run.folder.mkdir(parents=True)
    run.rows.write_text(json.dumps(row) + "\n" + json.dumps(row | {"sample_seed": 0}) + "\n")
    assert left(run) == [1, 2, 3, 4]


def test_nothing_is_missing_if_nothing_is_to_be_measured(tmp_path: Path) -> None:
    assert left(run_of(tmp_path, "evaluate=false")) == []
    assert left(run_of(tmp_path, "evaluate=false", "sampler.loops=2")) == []


@pytest.mark.parametrize("protocol", [None, "a"])
def test_every_combination_of_settings_is_a_row(tmp_path: Path, protocol: str | None) -> None:
    run = run_of(tmp_path, "objective=masked")
    changes = ({"guidance": 2.0}, {"steps": 3}, {"temperature": 0.7}, {"confidence_noise": 1.0})
    others = [replace(run.config, sampler=replace(run.config.sampler, **each)) for each in changes]
    requests = [Request(config, loops) for config in (run.config, *others) for loops in (1, 2)]
    for done, request in enumerate(requests):
        rows = measured_rows(run, requests, 0, run.config.images, protocol)
        assert [row is None for row in rows] == [n >= done for n in range(len(requests))]
        assert missing(run, requests, 0, run.config.images) == requests[done:]
        write(run, *request)
    for request, row in zip(
        requests, measured_rows(run, requests, 0, run.config.images, protocol), strict=True
    ):
        assert row is not None and requested_columns(request).items() <= row.items()
    assert [changed_settings(Request(config, 1), run.config) for config in others] == list(changes)
    assert changed_settings(requests[0], run.config) == {}
