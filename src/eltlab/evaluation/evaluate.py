"""Samples and measures a trained run as requested, and writes pictures, updates and rows."""

import csv
import io
import json
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from eltlab.common import collectives, ranks
from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.image_grids import grid_suffixes, save_grid
from eltlab.common.package_info import SOURCE, confirm_source, describe_code
from eltlab.common.text import format_loops
from eltlab.config.cost.bill import int_if_whole, sampling_bill
from eltlab.config.cost.flops import train_flops
from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.schema import Config
from eltlab.data.image_sources import same_data
from eltlab.evaluation.heldout_loss import LOSSES, loss_columns, loss_protocol
from eltlab.evaluation.metrics import Metrics, build_metrics, describe_metrics
from eltlab.evaluation.missing_rows import Request, changed_settings, measured_rows, requested_columns
from eltlab.evaluation.prepare_run import Prepared
from eltlab.evaluation.protocol import evaluation_protocol, protocol_id
from eltlab.evaluation.tokenizer_floor import measure_floor
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.runs.load_model import load_run
from eltlab.runs.row_files import (
    ROWS,
    SETTINGS,
    append_rows,
    read_rows,
    row_facts,
    setting_columns,
)
from eltlab.runs.run_folder import Run

TILES = 10  # images in the picture of a loop schedule
LOSS_COLUMNS = (*LOSSES, "heldout_protocol")
DYNAMICS_KEY = ("protocol", "images_seen", "sample_seed", "loops", *SETTINGS)


def evaluate(prepared: Prepared) -> None:
    """Measures the requests that the run has no row of. Each row is on disk before the next one starts.
    Every process samples its batches; the main process measures and writes. Raises UserError."""
    run, config, seed = prepared.run, prepared.config, prepared.seed
    confirm_source()
    collectives.barrier()  # the main process may have just written the checkpoint
    averages = Averages(run)
    labels = torch.arange(config.metrics.samples) % config.data.classes  # balanced
    if not ranks.is_main_process():
        while (number := collectives.broadcast()) is not None:  # by measure_request
            request = prepared.requests[number]
            averages.sampler(request.config).sample_all(labels, request.schedule, seed, "")
        return
    metrics = measure_tokenizer(prepared, averages)
    protocol = evaluation_protocol(config, prepared.precision, metrics.extractor, metrics.reference)
    common: dict[str, Any] = {
        "kind": "eval",
        "samples": len(labels),
        "protocol": protocol_id(protocol),
        "protocol_text": json.dumps(protocol, sort_keys=True),
        "sample_seed": seed,
    }
    images_seen, left = averages.counters["images_seen"], []
    before = measured_rows(run, prepared.requests, seed, images_seen, common["protocol"])
    for request, found in zip(prepared.requests, before, strict=True):
        if found is None:
            left.append(request)
        else:
            print(f"{describe(request, run.config)}: measured before{measured_by(found)}", file=sys.stderr)
    for length, requests in groupby(left, ema_length):
        group = list(requests)
        losses = find_losses(prepared, averages, length, group)
        for request in group:
            row = common | losses.get(constant_loops(request), dict.fromkeys(LOSS_COLUMNS))
            measure_request(prepared, averages, metrics, request, labels, row)
    collectives.broadcast(None)  # ends the other processes' loops


class Averages:
    """The samplers of a run's averaged networks, of which one is in memory."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.loaded: tuple[float | None, AnytimeSampler] | None = None  # by ema_length
        self.counters: dict[str, Any] = {}  # of the checkpoint

    def sampler(self, config: Config) -> AnytimeSampler:
        """The network of config's ema.length, with config's sampler. Raises UserError."""
        length = setting_columns(config)["ema_length"]
        if self.loaded is None or self.loaded[0] != length:
            model, self.counters = load_run(self.run.folder, config)
            self.loaded = length, model
        model = self.loaded[1]
        return AnytimeSampler(model.backbone, config, model.tokenizer)


def ema_length(request: Request) -> float | None:
    return setting_columns(request.config)["ema_length"]


def find_losses(
    prepared: Prepared, averages: Averages, length: float | None, requests: list[Request]
) -> dict[int | None, dict[str, Any]]:
    """The columns of `loss_columns` for every constant loop count that is requested. They depend on the
    network alone, so they are read back from the run's rows if the same code on the same device wrote them.

    length: the ema_length of the requests. An extension of an old version measures no losses: {}.
    """
    model = averages.sampler(requests[0].config)
    if not hasattr(model.objective, "losses"):
        return {}
    assert prepared.data is not None  # None only in the other processes
    data = replace(prepared.data, tokenizer=model.tokenizer)  # the codes that it was trained on
    protocol = {"heldout_protocol": loss_protocol(model, data)}
    now = run_facts(prepared.run, model, averages.counters) | {"ema_length": length} | protocol
    same = ("images_seen", "ema_length", "evaluated_code", "evaluated_source", "evaluated_device", *protocol)
    found: dict[int | None, dict[str, Any]] = {
        row["loops"]: {column: row[column] for column in LOSS_COLUMNS}
        for row in read_rows(prepared.run.rows)
        if row["kind"] == "eval"
        and row.get("heldout_loss") is not None
        and all(row.get(name) == now.get(name) for name in same)
    }
    exits = {n for request in requests if (n := constant_loops(request)) is not None} - found.keys()
    if not exits:
        return found
    return found | {n: loss | protocol for n, loss in loss_columns(model, data, sorted(exits)).items()}


def constant_loops(request: Request) -> int | None:
    """The loop count of every pass, or None if it varies."""
    constant = isinstance(request.schedule, int) and request.config.sampler.halting is None
    return request.schedule if constant else None  # type: ignore[return-value]


def measure_tokenizer(prepared: Prepared, averages: Averages) -> Metrics:
    """Checks the data of the run, and writes the row of its tokenizer. Returns the metrics."""
    config, model = prepared.config, averages.sampler(prepared.config)
    counters = averages.counters
    assert prepared.splits is not None  # None only in the other processes
    train, test = prepared.splits
    if not same_data(counters["data"], config.data.encoding or train.origin):
        raise UserError(
            f"data.root={config.data.root}: other images than the run was trained on (their hash "
            "differs); give the data.root= of those"
        )
    metrics = build_metrics(config, train, test, prepared.device)
    if model.tokenizer is not None:
        row = run_facts(prepared.run, model, counters)
        row |= {"kind": "tokenizer", "images_seen": None, "split": config.metrics.split}
        row |= measure_floor(model.tokenizer, train, test, config.metrics.samples, metrics)
        append_rows(prepared.run.rows, [row])
    return metrics


def measure_request(
    prepared: Prepared,
    averages: Averages,
    metrics: Metrics,
    request: Request,
    labels: torch.Tensor,
    known: dict[str, Any],
) -> None:
    """Samples one request on all ranks and measures it. known: the columns that are known before."""
    run, config, model = prepared.run, request.config, averages.sampler(request.config)
    name, number = describe(request, run.config), prepared.requests.index(request)
    collectives.broadcast(number)
    title = f"{number + 1} of {len(prepared.requests)}: {name}"
    drawn = model.sample_all(labels, request.schedule, known["sample_seed"], title)
    assert drawn is not None  # None only in the other processes
    row = run_facts(run, model, averages.counters) | known | requested_columns(request)
    row |= spent_columns(config, drawn.depths, row["images_seen"])
    row |= metrics.measure(drawn.images, labels) | {"split": config.metrics.split}
    write_dynamics(run.folder, row, drawn.updates)
    save_tiles(run.folder / "samples" / row["protocol"], request, run.config, drawn.images)
    append_rows(run.rows, [row])  # last: a request that has a row is complete
    spent = "" if config.sampler.halting is None else f" ({row['loops']:.2f} spent)"
    print(f"{name}{spent}: {describe_metrics(row)}", file=sys.stderr)


def describe(request: Request, own: Config) -> str:
    """A request for people to read: 4 loops; loops 4to1; at most 4 loops, halting 0.1; 4 loops, steps 8."""
    schedule, halting = request.schedule, request.config.sampler.halting
    name = format_loops(schedule)
    if halting is not None:
        name = f"at most {name}, halting {halting}"
    changed = changed_settings(request, own).items()
    return ", ".join([name, *(f"{column.replace('_', ' ')} {value}" for column, value in changed)])


def measured_by(row: dict[str, Any]) -> str:
    """Says that a row was measured by other code than this; empty if it was not."""
    source = row.get("evaluated_source")
    return "" if source == SOURCE else f" by {describe_code(row['evaluated_code'], source)}, not this source"


def run_facts(run: Run, model: AnytimeSampler, counters: dict[str, Any]) -> dict[str, Any]:
    """The columns that describe the run: its configuration, cost, training and machine."""
    # The run is costed as it was trained, however many devices evaluate it.
    keys = ("devices", "nodes", "strategy", "accumulate")
    trained = {key: getattr(run.config.trainer, key) for key in keys}
    config = replace(model.config, trainer=replace(model.config.trainer, **trained))
    here = row_facts(config, model.device, model.precision)
    return here | {
        "run": run.id,
        "code": counters["code"],
        "source": counters["source"],
        "device": counters["device"],
        "evaluated_code": here["code"],
        "evaluated_source": here["source"],
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
        **sampling_bill(config, spent),
        "train_flops_total": round(train_flops(config) * images_seen),
    }


def save_tiles(folder: Path, request: Request, own: Config, images: torch.Tensor) -> None:
    """Saves the first images of a request in two rows, for figures that compare runs. The name has the
    settings in which it differs from the run's own configuration."""
    schedule, halting = request.schedule, request.config.sampler.halting
    name = f"list_{digest(schedule)}" if isinstance(schedule, list) else f"{schedule:0>3}"
    settings = {} if halting is None else {"halting": halting}
    settings |= changed_settings(request, own)
    name += "".join(f"_{column}_{value}" for column, value in settings.items())
    rows = [images[: TILES // 2], images[TILES // 2 : TILES]]
    save_grid(folder / f"loops_{name}{grid_suffixes(own.data.frames)[0]}", rows, ["", ""])


def write_dynamics(folder: Path, row: dict[str, Any], updates: list[list[float]]) -> None:
    """Writes each loop's update at each sampling step, in place of earlier lines of the same measurement."""
    path = folder / "dynamics.csv"
    name = row["loops"] if row["loop_schedule"] == "constant" else row["loop_schedule"]
    key = {column: "" if row[column] is None else str(row[column]) for column in DYNAMICS_KEY}
    key["loops"] = str(name)
    new = [
        key | {"step": step, "loop": loop + 1, "update": f"{update:.6g}"}
        for step, loops in enumerate(updates)
        for loop, update in enumerate(loops)
    ]
    with file_lock((folder / ROWS).with_suffix(".lock")):
        kept: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                lines = list(csv.DictReader(file))
            kept = [line for line in lines if any(line.get(column) != key[column] for column in key)]
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, [*DYNAMICS_KEY, "step", "loop", "update"], restval="")
        writer.writeheader()
        writer.writerows([*kept, *new])
        write_atomic(path, buffer.getvalue())
