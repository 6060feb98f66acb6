"""Samples and measures a trained run at several loop schedules, and writes pictures, updates and rows."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eltlab.common import collectives, ranks
from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.image_grids import grid_suffixes, save_grid
from eltlab.common.text import format_loops
from eltlab.config.cost.bill import int_if_whole, sampling_bill
from eltlab.config.cost.flops import train_flops
from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.identity import identity
from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config
from eltlab.evaluation.metrics import Metrics, build_metrics, describe_metrics
from eltlab.evaluation.missing_rows import missing, requested_columns
from eltlab.evaluation.prepare_run import Prepared
from eltlab.evaluation.protocol import evaluation_protocol, protocol_id
from eltlab.evaluation.tokenizer_floor import measure_floor
from eltlab.runs.load_model import load_run
from eltlab.runs.row_files import ROWS, append_rows, row_facts, timestamp
from eltlab.runs.run_folder import Run

if TYPE_CHECKING:
    from eltlab.generation.anytime_sampler import AnytimeSampler

TILES = 10  # images in the picture of a loop schedule
DYNAMICS = ["protocol", "images_seen", "sample_seed", "loops", "step", "loop", "update"]


def evaluate(prepared: Prepared) -> None:
    """Measures the schedules that the run has no row of. Each row is on disk before the next one starts.
    Every process samples its batches; the main process measures and writes. Raises UserError."""
    run, config, seed = prepared.run, prepared.config, prepared.seed
    collectives.barrier()  # the main process may have just written the checkpoint
    model, counters = load_run(run.folder, config)
    labels = torch.arange(config.metrics.samples) % config.data.classes  # balanced
    if not ranks.is_main_process():
        while (schedule := collectives.broadcast()) is not None:  # by measure_schedule
            model.sample_all(labels, schedule, seed, "")
        return
    metrics, facts = measure_tokenizer(prepared, model, counters)
    protocol = evaluation_protocol(config, model.precision, metrics.extractor, metrics.reference)
    row = facts | {
        "kind": "eval",
        "samples": len(labels),
        "protocol": protocol_id(protocol),
        "protocol_text": json.dumps(protocol, sort_keys=True),
        "sample_seed": seed,
    }
    left = missing(run, config, prepared.schedules, seed, counters["images_seen"], row["protocol"])
    for schedule in prepared.schedules:
        if schedule in left:
            measure_schedule(run, model, metrics, schedule, labels, row)
        else:
            print(f"{describe(schedule, config)}: measured before", file=sys.stderr)
    collectives.broadcast(None)  # ends the other processes' loops


def measure_tokenizer(
    prepared: Prepared, model: "AnytimeSampler", counters: dict[str, Any]
) -> tuple[Metrics, dict[str, Any]]:
    """Writes the row of the tokenizer. Returns the metrics, and the columns that all rows share."""
    config = prepared.config
    assert prepared.splits is not None  # None only in the other processes
    train, test = prepared.splits
    if (config.data.encoding or train.origin) != counters["data"]:
        raise UserError(
            f"data.root={config.data.root}: other images than the run was trained on (their hash "
            "differs); give the data.root= of those"
        )
    metrics = build_metrics(config, train, prepared.device)
    facts = run_facts(prepared.run, model, counters)
    if model.tokenizer is not None:
        row = facts | {"kind": "tokenizer", "images_seen": None}
        row |= measure_floor(model.tokenizer, train, test, config.metrics.samples, metrics)
        append_rows(prepared.run.rows, [row])
    return metrics, facts


def measure_schedule(
    run: Run,
    model: "AnytimeSampler",
    metrics: Metrics,
    schedule: LoopSchedule,
    labels: torch.Tensor,
    common: dict[str, Any],
) -> None:
    """Samples one schedule on all ranks and measures it. common: the columns that all rows share."""
    config, name = model.config, describe(schedule, model.config)
    collectives.broadcast(schedule)
    drawn = model.sample_all(labels, schedule, common["sample_seed"], name)
    assert drawn is not None  # None only in the other processes
    row = common | {"created": timestamp()} | requested_columns(schedule, config)
    row |= spent_columns(config, drawn.depths, row["images_seen"])
    row |= metrics.measure(drawn.images, labels) | metrics.distances_between_halves()
    write_dynamics(run.folder, row, drawn.updates)
    save_tiles(run.folder / "samples" / row["protocol"], schedule, config, drawn.images)
    append_rows(run.rows, [row])  # last: a schedule that has a row is complete
    spent = "" if config.sampler.halting is None else f" ({row['loops']:.2f} spent)"
    print(f"{name}{spent}: {describe_metrics(row)}", file=sys.stderr)


def describe(schedule: LoopSchedule, config: Config) -> str:
    """A schedule for people to read: 4 loops, loops 4to1, at most 4 loops, halting 0.1."""
    halting = config.sampler.halting
    name = format_loops(schedule) if isinstance(schedule, int) else f"loops {schedule}"
    return name if halting is None else f"at most {name}, halting {halting}"


def run_facts(run: Run, model: "AnytimeSampler", counters: dict[str, Any]) -> dict[str, Any]:
    """The columns that describe the run: its configuration, cost, training and machine."""
    # The run is costed as it was trained, however many devices evaluate it.
    keys = ("devices", "nodes", "strategy", "accumulate")
    trained = {key: getattr(run.config.trainer, key) for key in keys}
    config = replace(model.config, trainer=replace(model.config.trainer, **trained))
    here = row_facts(config, model.device, model.precision)
    return here | {
        "run": f"{config.name}/{identity(run.config)}",  # the same if its folder has moved
        "code": counters["code"],
        "device": counters["device"],
        "evaluated_code": here["code"],
        "evaluated_device": here["device"],
        "study": config.study,
        "trial": config.trial,
        "tuned": config.tuned,
        "tuned_on": config.tuned_on,
        "images_seen": counters["images_seen"],
        "train_seconds": counters["train_seconds"],
        "images_per_second": counters["images_seen"] / max(counters["train_seconds"], 1e-9),
        "peak_memory_bytes": counters["peak_memory_bytes"],
    }


def spent_columns(config: Config, spent: list[DepthDistribution], images_seen: int) -> dict[str, Any]:
    """The mean loops that the sampling steps ran, what these cost, and the training FLOPs so far."""
    loops = sum(n * share for depths in spent for n, share in depths.items())
    return {
        "loops": int_if_whole(loops / len(spent)),
        "steps": config.sampler.steps,
        "guidance": config.sampler.guidance,
        **sampling_bill(config, spent),
        "train_flops_total": round(train_flops(config) * images_seen),
    }


def save_tiles(folder: Path, schedule: LoopSchedule, config: Config, images: torch.Tensor) -> None:
    """Saves the first images of a schedule in two rows, for figures that compare runs."""
    name = f"list_{digest(schedule)}" if isinstance(schedule, list) else f"{schedule:0>3}"
    if config.sampler.halting is not None:
        name += f"_halting_{config.sampler.halting}"
    rows = [images[: TILES // 2], images[TILES // 2 : TILES]]
    save_grid(folder / f"loops_{name}{grid_suffixes(config.data.frames)[0]}", rows, ["", ""])


def write_dynamics(folder: Path, row: dict[str, Any], updates: list[list[float]]) -> None:
    """Writes each loop's update at each sampling step, in place of earlier lines of the same measurement."""
    path = folder / "dynamics.csv"
    name = row["loops"] if row["loop_schedule"] == "constant" else row["loop_schedule"]
    key = [row["protocol"], row["images_seen"], row["sample_seed"], name]
    new = [
        [*key, step, loop + 1, f"{update:.6g}"]
        for step, loops in enumerate(updates)
        for loop, update in enumerate(loops)
    ]
    with file_lock((folder / ROWS).with_suffix(".lock")):
        kept: list[list[str]] = []
        if path.is_file():
            with path.open(newline="") as file:
                lines = list(csv.reader(file))[1:]
            kept = [line for line in lines if line[:4] != list(map(str, key))]
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerows([DYNAMICS, *kept, *new])
        write_atomic(path, buffer.getvalue())
