"""python -m eltlab.evaluate run=DIR loops=[1,2,4] samples=N: measures a run, one row a loop count."""

import csv
import io
import json
import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab import compute, results
from eltlab.cli import open_run, run_verb
from eltlab.config import Config, IlsdConfig, flatten
from eltlab.errors import UserError
from eltlab.files import locked, write_atomic
from eltlab.rules import check_samples
from eltlab.schedule import evaluations, is_loop_count

if TYPE_CHECKING:
    from torch import Tensor

    from eltlab.data.images import ImageSet
    from eltlab.elastic import Elastic
    from eltlab.metrics.distances import ClassifierMetrics
    from eltlab.runs import Run

TILES = 10  # images of each loop count that are kept to look at

Loops = int | list[int]


@dataclass
class Asked:
    run: str | None = None
    loops: Any = None
    samples: int | None = None
    seed: int | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "  run=DIR              the folder that fit printed (required)\n"
        "  'loops=[1,2,4]'      loop counts, also beyond the trained one; default: evaluate_loops\n"
        "  samples=N            default: metrics.samples of the run\n"
        "  seed=N               of the sampling noise; default: the run's seed\n"
        "  sampler.* metrics.*  as in fit: sampler.steps=64 sampler.guidance=2 'sampler.loops=[4,4,2,2]'\n"
        "  trainer.accelerator=cpu\n\n"
        "Rows go to DIR/rows.jsonl (a measurement made before is not made again), relative updates to\n"
        "DIR/dynamics.csv, pictures to DIR/samples/. Read the rows with eltlab.results.load('runs')."
    )


def main(overrides: list[str]) -> None:
    run, config, asked = open_run(overrides, Asked())
    counts = asked.loops if asked.loops is not None else default_loops(config)
    counts = [counts] if isinstance(counts, int) else counts
    if asked.samples is not None:
        config.metrics.samples = asked.samples
        check_samples(config)
    evaluate_run(run, config, counts, config.seed if asked.seed is None else asked.seed)
    print(f"run: {run.folder}")


def default_loops(config: Config) -> Any:
    """The schedule of sampler.loops where it is set, else every one of evaluate_loops."""
    return config.evaluate_loops if config.sampler.loops is None else [config.sampler.loops]


def evaluate_run(run: "Run", config: Config, loops: Any, seed: int) -> None:
    """Draws samples from the EMA weights at each loop count (or schedule) and writes the rows.

    A row that is there already is not drawn again; each row is on disk before the next is begun.
    """
    check_loops(loops, config.sampler.steps)
    samples = config.metrics.samples
    import torch

    from eltlab.build import build_splits
    from eltlab.elastic import load_run
    from eltlab.metrics.distances import ClassifierMetrics
    from eltlab.metrics.protocol import protocol_id, sampling_protocol

    model, counters = load_run(run.folder, config)
    train, test = build_splits(config)
    reference = train.subset(config.metrics.reference)
    metrics = ClassifierMetrics(train, config.data.classes, reference)
    if model.tokenizer is not None:
        tokenizer_row(run, model, counters, train, test, metrics)
    protocol = sampling_protocol(
        config.sampler, samples, model.precision, metrics.extractor, metrics.reference
    )
    known = {results.identity(row) for row in results.read_rows(run.rows)}
    labels = (
        torch.arange(samples) % config.data.classes
    )  # balanced: sample i has label i mod classes
    for count in loops:
        row = {
            **facts(run, model, counters),
            **costs(config, count, counters["images_seen"]),
            "kind": "eval",
            "samples": samples,
            "protocol": protocol_id(protocol),
            "protocol_text": json.dumps(protocol, sort_keys=True),
            "sample_seed": seed,
        }
        if results.identity(row) in known:
            print(f"{name_of(count)}: measured before", file=sys.stderr)
            continue
        images, updates = model.draw_all(labels, count, seed, name_of(count))
        row |= metrics.measure(images, labels) | {"fd_halves": metrics.halves}
        with locked(run.rows.with_suffix(".lock")):
            write_dynamics(run.folder / "dynamics.csv", row, updates)
        keep_tiles(run.folder / "samples" / row["protocol"], count, images)
        results.append_rows(run.rows, [row])
        print(
            f"{name_of(count)}: fd_classifier {row['fd_classifier']:.2f}, "
            f"accuracy {row['accuracy']:.3f}",
            file=sys.stderr,
        )


def check_loops(loops: Any, steps: int) -> None:
    """Raises UserError for what is not a list of loop counts, or of schedules of one count a step."""
    if not isinstance(loops, list) or not loops:
        raise UserError(f"loops={loops}: give loop counts of at least 1, e.g. loops=[1,2,4]")
    for item in loops:
        counts = item if isinstance(item, list) else [item]
        if isinstance(item, list) and len(item) != steps:
            raise UserError(
                f"loops={loops}: {item} is not a schedule of {steps} counts, one per step"
            )
        for count in counts:
            if not is_loop_count(count):
                raise UserError(f"loops={loops}: {count} is not a loop count of at least 1")


# --- what is kept beside the rows ------------------------------------------------------------------


def name_of(loops: Loops) -> str:
    from eltlab.pictures import counted

    return counted(loops) if isinstance(loops, int) else f"loops {loops}"


def keep_tiles(folder: Path, loops: Loops, images: "Tensor") -> None:
    """The first images of a loop count, in two rows, for pictures that compare runs."""
    from eltlab.pictures import save_grid

    name = f"{loops:03}" if isinstance(loops, int) else "-".join(map(str, loops))
    rows = [images[: TILES // 2], images[TILES // 2 : TILES]]
    save_grid(folder / f"loops_{name}.png", rows, ["", ""])


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


# --- rows -----------------------------------------------------------------------------------------


def facts(run: "Run", model: "Elastic", counters: dict[str, Any]) -> dict[str, Any]:
    """What every row of a run says of its configuration, its training and its machine."""
    from eltlab.machine import code_version, device_name

    config = model.config
    net = compute.network(config)
    assert config.name is not None
    return {
        "run": f"{config.name}/{run.folder.name}",
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": counters["code"],
        "device": counters["device"],
        "evaluated_code": code_version(),
        "evaluated_device": device_name(model.device),
        "seed": config.seed,
        "data": config.data.name,
        "objective": config.objective.name,
        "supervision": config.supervision.name,
        "model": config.model.name,
        "width": config.model.width,
        "depth": config.model.depth,
        "unique_layers": config.unique_layers,
        "loops_train": config.loops,
        "images_seen": counters["images_seen"],
        "params_total": compute.params_total(net),
        "params_blocks": compute.params_blocks(net),
        "train_seconds": counters["train_seconds"],
        "images_per_second": counters["images_seen"] / max(counters["train_seconds"], 1e-9),
        "peak_memory_bytes": counters["peak_memory_bytes"],
        "cfg": flatten(config),
    }


def costs(config: Config, loops: Loops, images_seen: int) -> dict[str, Any]:
    """Loop schedule, NFE, MACs and training FLOPs. With a schedule, loops and MACs are means."""
    sampler, net = config.sampler, compute.network(config)
    passes = evaluations(sampler.guidance, sampler.guidance_schedule, sampler.steps)
    macs = compute.macs_per_sample(net, config, loops)
    constant = isinstance(loops, int)
    exits = 2 if isinstance(config.supervision, IlsdConfig) else 1
    return {
        "loops": loops if isinstance(loops, int) else sum(loops) / len(loops),
        "loop_schedule": "constant" if constant else json.dumps(loops),
        "steps": sampler.steps,
        "nfe": sum(passes),
        "guidance": sampler.guidance,
        "macs_per_pass": macs // sum(passes) if constant else macs / sum(passes),
        "macs_per_sample": macs,
        "train_flops_total": compute.train_flops_per_image(net, config.loops, exits) * images_seen,
    }


def tokenizer_row(
    run: "Run",
    model: "Elastic",
    counters: dict[str, Any],
    train: "ImageSet",
    test: "ImageSet",
    metrics: "ClassifierMetrics",
) -> None:
    """One row of what the codebook alone loses: the floor that masked models are read against.

    PSNR on the test split; fd_classifier and accuracy of the reconstructed training split.
    """
    from eltlab.data.tokenizer import psnr
    from eltlab.metrics.protocol import protocol_id

    tokenizer = model.tokenizer
    assert tokenizer is not None
    protocol = {
        "tokenizer": tokenizer.hash,
        "extractor": metrics.extractor,
        "reference": metrics.reference,
        "images": f"{train.name}-{train.hash}",
        "psnr": f"{test.name}-{test.hash}",
    }
    row = {
        **facts(run, model, counters),
        "kind": "tokenizer",
        "images_seen": None,
        "samples": len(train),
        "protocol": protocol_id(protocol),
        "protocol_text": json.dumps(protocol, sort_keys=True),
    }
    if results.identity(row) in {results.identity(known) for known in results.read_rows(run.rows)}:
        return
    decibels = psnr(test.images, tokenizer.decode(tokenizer.encode(test.images)))
    # JSON has no infinity: a codebook that loses nothing has no PSNR.
    row["psnr"] = decibels if math.isfinite(decibels) else None
    rebuilt = tokenizer.decode(tokenizer.encode(train.images))
    results.append_rows(run.rows, [row | metrics.measure(rebuilt, train.labels)])


if __name__ == "__main__":
    run_verb(main, usage)
