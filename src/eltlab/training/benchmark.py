"""Times training steps and sampling of a looped model, its vanilla loop and its twin, interleaved."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eltlab.common.errors import UserError
from eltlab.common.machine import find_machine
from eltlab.common.text import example_unit, format_bytes, format_duration, format_si, format_table
from eltlab.config.checks import divides
from eltlab.config.cost.bill import model_bill, sampling_bill
from eltlab.config.cost.memory import side_by_side
from eltlab.config.depths import DepthDistribution
from eltlab.config.schedules import is_loop_count
from eltlab.config.schema import Config
from eltlab.runs.composing import compose
from eltlab.runs.row_facts import row_facts

if TYPE_CHECKING:
    from eltlab.data.build import TrainingData
    from eltlab.generation.anytime_sampler import AnytimeSampler
    from eltlab.training.timing import Arm


@dataclass
class Turns:
    """What is timed, and how often."""

    splits: Any = None
    repeats: int = 10
    warmup: int = 2
    batches: Any = field(default_factory=lambda: [1, 8, 64])


def checked(asked: Turns) -> Any:
    """With lists for single counts. Raises UserError."""
    for key in ("repeats", "warmup"):
        if getattr(asked, key) < 1:
            raise UserError(f"{key}={getattr(asked, key)}: must be at least 1")
    for key in ("splits", "batches"):
        value = getattr(asked, key)
        counts = [value] if isinstance(value, int) else value
        if counts is not None:
            if not isinstance(counts, list) or not all(map(is_loop_count, counts)):
                raise UserError(f"{key}={value}: give counts of at least 1, e.g. {key}=[1,8]")
            setattr(asked, key, list(dict.fromkeys(counts)))
    return asked


def compared(rest: list[str], asked: Turns) -> list[Config]:
    """The twin first, then at each loop count the vanilla loop and the chosen supervision; all run
    as many layers a pass."""
    chosen = compose(rest)
    if chosen.sampler.loops is not None:
        raise UserError(
            f"sampler.loops={chosen.sampler.loops}: bench draws at the loop counts of splits, and at one; "
            "leave it out"
        )
    assert chosen.unique_layers is not None
    depth = chosen.unique_layers * chosen.loops
    configs = []
    for loops in dict.fromkeys([1, *([chosen.loops] if asked.splits is None else asked.splits)]):
        divides("splits", loops, "the layers of a pass", depth)
        split = [*rest, f"loops={loops}", f"unique_layers={depth // loops}"]
        configs.append(compose([*split, "supervision=final"]))
        if loops > 1 and chosen.supervision.name != "final":
            configs.append(compose(split))
    # As many steps as are taken, and those in which the peak is looked for.
    steps = asked.warmup + asked.repeats + 2
    return [replace(c, budget=replace(c.budget, images=steps * c.batch_size)) for c in configs]


def writable(out: Path) -> Path:
    """out, in a folder that is there now. Raises UserError before anything is measured."""
    mend = "give a file of rows, e.g. out=bench.jsonl"
    if out.is_dir():
        raise UserError(f"out={out}: cannot be written, it is a folder; {mend}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror}); {mend}") from error
    return out


def check_memory(configs: list[Config]) -> None:
    """Raises UserError where the arms, which all stay in memory, do not fit."""
    machine = find_machine(configs[0].trainer.accelerator, configs[0].trainer.precision)
    total = side_by_side(configs, machine.kind, machine.precision)
    if machine.memory is not None and total > machine.memory:
        raise UserError(
            f"{len(configs)} arms of batch_size={configs[0].batch_size} take {format_bytes(total)}, and "
            f"{machine.name} has {format_bytes(machine.memory)}; give fewer splits or a smaller batch_size"
        )


def train_rows(arms: list["Arm"], asked: Turns, call: str) -> list[dict[str, Any]]:
    from eltlab.common.progress import Bar
    from eltlab.training.timing import interleaved, matmul_rate

    images = sum(arm.config.batch_size for arm in arms)
    product = partial(matmul_rate, arms[0].device, arms[0].precision)
    takers: list[Callable[[], Any]] = [*(arm.step for arm in arms), product]
    total, unit = (asked.warmup + asked.repeats) * images, example_unit(arms[0].config.data.shape)
    with Bar("training steps", total, unit=unit) as bar:
        *steps, products = interleaved(
            takers, asked.repeats, asked.warmup, lambda turn: bar.update(turn * images)
        )
    peak = statistics.median(products)
    totals = [[step.seconds for step in taken] for taken in steps]
    vanilla = {arm.config.loops: n for n, arm in enumerate(arms) if is_vanilla(arm.config)}
    rows = []
    for arm, taken, seconds in zip(arms, steps, totals, strict=True):
        batch, parts = arm.config.batch_size, taken[0].parts
        rows.append(
            {
                **facts(arm, "train", asked, call),
                "batch_size": batch,
                **spread("seconds", seconds),
                **{f"{part}_seconds": median(step.parts[part] for step in taken) for part in parts},
                **spread("ratio_to_twin", ratios(seconds, totals[0])),
                **spread("ratio_to_vanilla", ratios(seconds, totals[vanilla[arm.config.loops]])),
                "images_per_second": batch / statistics.median(seconds),
                "flops_per_second": sum(step.flops for step in taken) / sum(seconds),
                "mfu": sum(step.model_flops for step in taken) / sum(seconds) / peak,
                "matmul_flops_per_second": peak,
                "peak_memory_bytes": arm.peak_bytes(),
            }
        )
    return rows


def is_vanilla(config: Config) -> bool:
    return config.supervision.name == "final"


def train_table(rows: list[dict[str, Any]]) -> list[str]:
    head = ["training step", "seconds", "x twin", "x vanilla", "forward", "backward", "optimizer"]
    lines = [[*head, "data", "examples/s", "utilisation", "peak", "predicted"]]
    for row in rows:
        parts = [
            format_duration(row[f"{part}_seconds"])
            for part in ("forward", "backward", "optimizer", "data")
        ]
        lines.append(
            [
                f"{row['unique_layers']} x {row['loops']} {row['supervision']}",
                format_duration(row["seconds"]),
                f"{row['ratio_to_twin']:.2f}",
                f"{row['ratio_to_vanilla']:.2f}",
                *parts,
                f"{row['images_per_second']:,.1f}",
                f"{row['mfu']:.0%}",
                format_bytes(row["peak_memory_bytes"]),
                format_bytes(row["memory_training_bytes"]),
            ]
        )
    first = rows[0]
    where = f"{first['device']}, {first['precision']}, batch {first['batch_size']}"
    what = f"utilisation of {format_si(first['matmul_flops_per_second'], 'FLOP/s')}, one large matrix product"
    return [f"{where}, medians of {first['repeats']}; {what}", *format_table(lines)]


def sample_rows(
    arms: list["Arm"], data: "TrainingData", asked: Turns, call: str, peak: float
) -> list[dict[str, Any]]:
    """The twin, and each vanilla loop at its own count and, any-time, at one loop: the supervision
    makes no difference to what a pass costs."""
    from eltlab.common.progress import Bar
    from eltlab.generation.anytime_sampler import AnytimeSampler
    from eltlab.training.timing import interleaved

    models = [
        (arm, AnytimeSampler(arm.module.ema, arm.config, data.tokenizer), loops)
        for arm in arms
        if is_vanilla(arm.config)
        for loops in sorted({1, arm.config.loops}, reverse=True)
    ]
    rows = []
    for batch in asked.batches:
        images = batch * len(models)
        takers = [partial(draw, model, batch, loops) for _, model, loops in models]
        total = (asked.warmup + asked.repeats) * images
        with Bar(f"samples, {batch} at a time", total, unit="samples") as bar:

            def turned(turn: int, bar: Bar = bar, images: int = images) -> None:
                bar.update(turn * images)

            taken = interleaved(takers, asked.repeats, asked.warmup, turned)
        twin = [drawn.seconds for drawn in taken[0]]
        for (arm, _, loops), drawn in zip(models, taken, strict=True):
            config = replace(arm.config, batch_size=batch)
            # The same noise and labels each time: what passes spend, halted or not, is the same too.
            costs = sampling_bill(config, drawn[0].spent)
            seconds = [each.seconds for each in drawn]
            flops = costs["flops_per_sample"] * batch / statistics.median(seconds)
            rows.append(
                {
                    **facts(arm, "sample", asked, call),
                    **model_bill(config, arm.device.type, arm.precision),
                    "loops": loops,
                    "steps": config.sampler.steps,
                    "guidance": config.sampler.guidance,
                    "halting": config.sampler.halting,
                    "batch_size": batch,
                    **costs,
                    **spread("seconds", seconds),
                    **spread("ratio_to_twin", ratios(seconds, twin)),
                    "images_per_second": batch / statistics.median(seconds),
                    "flops_per_second": flops,
                    "mfu": flops / peak,
                    "matmul_flops_per_second": peak,
                }
            )
    return rows


class Drew(NamedTuple):
    """One draw: its seconds, decoding and the way to the host included, and the loops it spent."""

    seconds: float
    spent: list[DepthDistribution]


def draw(model: "AnytimeSampler", batch: int, loops: int) -> Drew:
    import torch

    labels = torch.arange(batch) % model.config.data.classes
    started = time.perf_counter()
    drawn = model.sample_batch(labels, loops, seed=0)
    return Drew(time.perf_counter() - started, drawn.depths)


def sample_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [["samples", "at a time", "seconds", "x twin", "samples/s", "utilisation"]]
    for row in rows:
        lines.append(
            [
                f"{row['unique_layers']} x {row['loops_train']} at {row['loops']}",
                str(row["batch_size"]),
                format_duration(row["seconds"]),
                f"{row['ratio_to_twin']:.2f}",
                f"{row['images_per_second']:,.1f}",
                f"{row['mfu']:.0%}",
            ]
        )
    return [
        f"{rows[0]['steps']} sampling steps, guidance {rows[0]['guidance']:g}",
        *format_table(lines),
    ]


def facts(arm: "Arm", measure: str, asked: Turns, call: str) -> dict[str, Any]:
    """What every row says of its configuration and its machine; rows of one call took turns."""
    config = arm.config
    return {
        "kind": "bench",
        "measure": measure,
        "call": call,
        "precision": arm.precision,
        "loops": config.loops,
        "repeats": asked.repeats,
        "warmup": asked.warmup,
        # Microseconds, because `created` alone tells one timing of a machine from the next.
        **row_facts(config, arm.device, arm.precision, timespec="microseconds"),
    }


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median and quartiles, which lie within the values."""
    several = len(values) > 1
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if several else values * 3
    return {name: statistics.median(values), f"{name}_q25": low, f"{name}_q75": high}


def ratios(values: list[float], others: list[float]) -> list[float]:
    """Turn by turn: what slows the machine slows both."""
    return [value / other for value, other in zip(values, others, strict=True)]


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))
