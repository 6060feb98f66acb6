"""Draws samples of a run at several loop counts, measures them and writes one row for each."""

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab.common import distributed, ranks
from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.common.hashing import digest
from eltlab.common.text import format_loops
from eltlab.config.cost.bill import int_if_whole, sampling_bill
from eltlab.config.cost.flops import train_flops
from eltlab.config.depths import DepthDistribution
from eltlab.config.identity import identity
from eltlab.config.schedules import SCHEDULE_FORMS, LoopSchedule, is_loop_schedule
from eltlab.config.schema import Config
from eltlab.runs import row_files
from eltlab.runs.row_facts import recorded_config, row_facts

if TYPE_CHECKING:
    from torch import Tensor

    from eltlab.data.sources import Splits
    from eltlab.generation.anytime_sampler import AnytimeSampler
    from eltlab.runs.run import Run

TILES = 10  # images of each loop count that are kept to look at


def default_loops(config: Config) -> Any:
    """The schedule of sampler.loops where it is set, else every one of evaluate_loops."""
    return config.evaluate_loops if config.sampler.loops is None else [config.sampler.loops]


def unmeasured(run: "Run", config: Config, loops: list[LoopSchedule], seed: int) -> int:
    """How many of these have no row of this very configuration."""
    cfg = json.loads(json.dumps(recorded_config(config)))
    same = [row for row in row_files.read_rows(run.rows) if row.get("cfg") == cfg]
    known = {named(row) for row in same if row["kind"] == "eval" and row["sample_seed"] == seed}
    return sum(named(columns(asked, config)) not in known for asked in loops)


def draws_of(run: "Run", config: Config, loops: list[LoopSchedule], seed: int, floor: bool) -> int:
    """How often samples will be measured: with a floor, what a tokenizer loses is too."""
    left = unmeasured(run, config, loops, seed)
    return left + floor if left else 0


def evaluate_run(
    run: "Run", config: Config, loops: Any, seed: int, splits: "Splits | None" = None
) -> None:
    """Draws samples from the EMA weights at each loop count (or schedule) and writes the rows.

    A row that is there already is not drawn again; each row is on disk before the next is begun.
    splits: train and test, where they are read already.
    """
    check_loops(loops, config.sampler.steps)
    samples = config.metrics.samples
    import torch

    from eltlab.common.torch_device import choose_device
    from eltlab.data.build import build_splits
    from eltlab.data.sources import pixels_of
    from eltlab.evaluation.metrics import build_metrics, check_metrics
    from eltlab.evaluation.protocol import clips_of, protocol_id, sampling_protocol
    from eltlab.evaluation.tokenizer_floor import floor
    from eltlab.runs.loading import load_run

    distributed.init_process_group(choose_device(config.trainer.accelerator))
    distributed.barrier()  # the first process may have just written the checkpoint
    model, counters = load_run(run.folder, config)
    labels = torch.arange(samples) % config.data.classes  # balanced
    if not ranks.is_main_process():
        return assist(model, labels, seed)
    train, test = splits or build_splits(config)
    if splits is None:
        draws = draws_of(run, config, loops, seed, model.tokenizer is not None)
        check_metrics(config, len(train), draws, model.device)
    if (config.data.encoding or train.origin) != counters["data"]:
        raise UserError(
            f"data.root={config.data.root}: other images than the run was trained on (their hash "
            "differs); give data.root= where those lie"
        )
    wanted = config.metrics.reference
    reference = train if wanted is None else train.subset(wanted)
    metrics = build_metrics(config, train, reference, model.device)
    if model.tokenizer is not None:
        row = {**facts(run, model, counters), "kind": "tokenizer", "images_seen": None}
        row |= floor(model.tokenizer, train, test, samples, metrics)
        row_files.append_rows(run.rows, [row])
    protocol = sampling_protocol(
        config.sampler, samples, model.precision, metrics.extractor, metrics.reference
    )
    if config.data.frames > 1:
        protocol["clips"] = clips_of(pixels_of(config))
    if config.objective.source is not None:  # the sampler is the extension's own code
        protocol["objective"] = config.objective.source
    known = {row_files.measurement_key(row) for row in row_files.read_rows(run.rows)}
    for asked in loops:
        name = name_of(asked, config.sampler.halting)
        row = {
            **facts(run, model, counters),
            "kind": "eval",
            **columns(asked, config),
            "samples": samples,
            "protocol": protocol_id(protocol),
            "protocol_text": json.dumps(protocol, sort_keys=True),
            "sample_seed": seed,
        }
        if row_files.measurement_key(row) in known:
            print(f"{name}: measured before", file=sys.stderr)
            continue
        distributed.broadcast(asked)
        drawn = model.sample_all(labels, asked, seed, name)
        assert drawn is not None  # of the first process
        row |= costs(config, drawn.depths, counters["images_seen"])
        row |= metrics.measure(drawn.images, labels) | metrics.floor()
        with file_lock(run.rows.with_suffix(".lock")):
            write_dynamics(run.folder / "dynamics.csv", row, drawn.updates)
        keep_tiles(run.folder / "samples" / row["protocol"], asked, config, drawn.images)
        row_files.append_rows(
            run.rows, [row]
        )  # the last: a row that is there is not measured again
        spent = "" if config.sampler.halting is None else f" ({row['loops']:.2f} spent)"
        print(f"{name}{spent}: {metrics.headline(row)}", file=sys.stderr)
    distributed.broadcast(None)


def assist(model: "AnytimeSampler", labels: "Tensor", seed: int) -> None:
    """Draws this process's batches of all that the first one measures, until it says that it is done."""
    while (asked := distributed.broadcast()) is not None:
        model.sample_all(labels, asked, seed, "")


def check_loops(loops: Any, steps: int) -> None:
    """Raises UserError for what is not a list of loop counts and schedules."""
    if not isinstance(loops, list) or not loops:
        raise UserError(f"loops={loops}: give loop counts of at least 1, e.g. loops=[1,2,4]")
    for item in loops:
        if not is_loop_schedule(item, steps):
            raise UserError(f"loops={loops}: {item} is not {SCHEDULE_FORMS}; sampler.steps={steps}")


def columns(loops: LoopSchedule, config: Config) -> dict[str, Any]:
    """The columns that say what was asked for; of a schedule the loops that it spends come later."""
    return {
        "loop_schedule": schedule_name(loops, config.sampler.halting),
        "loops": loops if isinstance(loops, int) else None,
    }


def named(row: dict[str, Any]) -> tuple[str, int | None]:
    """What was asked for, out of a row."""
    return row["loop_schedule"], row_files.requested_loops(row)


def schedule_name(loops: LoopSchedule, halting: float | None) -> str:
    """The column loop_schedule: constant, 4to1, a JSON list; "…, halting τ" where passes may stop."""
    name = loops if isinstance(loops, str) else json.dumps(loops)
    if halting is not None:
        return f"{name}, halting {halting}"
    return "constant" if isinstance(loops, int) else name


def name_of(loops: LoopSchedule, halting: float | None) -> str:
    name = format_loops(loops) if isinstance(loops, int) else f"loops {loops}"
    return name if halting is None else f"at most {name}, halting {halting}"


def keep_tiles(folder: Path, loops: LoopSchedule, config: Config, images: "Tensor") -> None:
    """The first images of a loop count, in two rows, for pictures that compare runs."""
    from eltlab.common.image_grids import grid_suffixes, save_grid

    name = f"list_{digest(loops)}" if isinstance(loops, list) else f"{loops:0>3}"
    if config.sampler.halting is not None:
        name += f"_halting_{config.sampler.halting}"
    rows = [images[: TILES // 2], images[TILES // 2 : TILES]]
    save_grid(folder / f"loops_{name}{grid_suffixes(config.data.frames)[0]}", rows, ["", ""])


DYNAMICS = ["protocol", "images_seen", "sample_seed", "loops", "step", "loop", "update"]


def write_dynamics(path: Path, row: dict[str, Any], updates: list[list[float]]) -> None:
    """Adds the relative update of every loop at every sampling step, in place of an older measurement."""
    name = row["loops"] if row["loop_schedule"] == "constant" else row["loop_schedule"]
    key = [row["protocol"], row["images_seen"], row["sample_seed"], name]
    kept: list[list[Any]] = []
    if path.is_file():
        with path.open(newline="") as file:
            kept = [line for line in list(csv.reader(file))[1:] if line[:4] != list(map(str, key))]
    new = [
        [*key, step, loop + 1, f"{update:.6g}"]
        for step, loops in enumerate(updates)
        for loop, update in enumerate(loops)
    ]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([DYNAMICS, *kept, *new])
    write_atomic(path, buffer.getvalue())


def facts(run: "Run", model: "AnytimeSampler", counters: dict[str, Any]) -> dict[str, Any]:
    """What every row of a run says of its configuration, its training and its machine."""
    config = as_trained(model.config, run.config)
    here = row_facts(config, model.device, model.precision)
    return {
        **here,
        "run": f"{config.name}/{identity(run.config)}",  # wherever its folder has moved
        "code": counters["code"],
        "device": counters["device"],
        "evaluated_code": here["code"],
        "evaluated_device": here["device"],
        "study": config.study,
        "trial": config.trial,
        "images_seen": counters["images_seen"],
        "train_seconds": counters["train_seconds"],
        "images_per_second": counters["images_seen"] / max(counters["train_seconds"], 1e-9),
        "peak_memory_bytes": counters["peak_memory_bytes"],
    }


def as_trained(config: Config, trained: Config) -> Config:
    """A configuration that is measured, spread over the devices and pieces of its training again."""
    keys = ("devices", "nodes", "strategy", "accumulate")
    spread = {key: getattr(trained.trainer, key) for key in keys}
    return replace(config, trainer=replace(config.trainer, **spread))


def costs(config: Config, spent: list[DepthDistribution], images_seen: int) -> dict[str, Any]:
    """What samples that spent these loops at each step cost, and the training so far."""
    loops = sum(n * share for depths in spent for n, share in depths.items())
    return {
        "loops": int_if_whole(loops / len(spent)),
        "steps": config.sampler.steps,
        "guidance": config.sampler.guidance,
        **sampling_bill(config, spent),
        "train_flops_total": round(train_flops(config) * images_seen),
    }
