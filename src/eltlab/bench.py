"""python -m eltlab.bench [overrides]: measured steps and samples, looped beside vanilla beside twin."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eltlab import results
from eltlab.bill import model_bill, sampling_bill
from eltlab.cli import options, own_keys, run_verb
from eltlab.compose import compose
from eltlab.compute import asked_depths, train_flops
from eltlab.config import Config
from eltlab.errors import UserError
from eltlab.machine import machine_of
from eltlab.memory import training_memory
from eltlab.text import binary, columns, si, span

if TYPE_CHECKING:
    from eltlab.build import Data
    from eltlab.elastic import Elastic
    from eltlab.progress import Bar
    from eltlab.timing import Arm


@dataclass
class Asked:
    splits: list[int] | None = None
    repeats: int = 10
    warmup: int = 2
    batches: list[int] = field(default_factory=lambda: [1, 8, 64])
    out: str | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes fit's overrides. At each loop count the vanilla loop (supervision=final) and the chosen\n"
        "supervision, beside the unique-layer twin: whole training steps by their parts, then samples.\n"
        "All arms take turns, so that the machine's drift meets all alike. And its own keys:\n\n"
        "  'splits=[2,4,12]'    loop counts at the same depth; default: loops\n"
        "  repeats=10 warmup=2  turns that are measured, and turns before them\n"
        "  'batches=[1,8,64]'   samples at a time; [] for none\n"
        "  out=FILE.jsonl       where the rows go; default: RUNS_DIR/bench/rows.jsonl\n\n"
        f"choices:\n{options()}\n\n"
        "examples:\n"
        "  python -m eltlab.bench loops=4\n"
        "  python -m eltlab.bench model=elt_b 'splits=[2,4,12]' batch_size=8 sampler.steps=4"
    )


def main(overrides: list[str]) -> None:
    asked, rest = own_keys(overrides, Asked())
    check_asked(asked)
    configs = compared(rest, asked)
    check_memory(configs)
    out = Path(asked.out or f"{configs[0].runs_dir}/bench/rows.jsonl").expanduser()

    from eltlab.build import build_data, choose_device, choose_precision
    from eltlab.timing import Arm

    device = choose_device(configs[0].trainer.accelerator)
    precision = choose_precision(configs[0].trainer.precision, device)
    data = build_data(configs[0])
    arms = [Arm(c, device, precision, data.batches(c, 0, device)) for c in configs]
    rows = train_rows(arms, asked)
    results.append_rows(out, rows)
    print(*train_table(rows), sep="\n", flush=True)
    rows = sample_rows(arms, data, asked, rows[0]["matmul_flops_per_second"])
    if rows:
        results.append_rows(out, rows)
        print("", *sample_table(rows), sep="\n")
    print(f"rows: {out}")


def check_asked(asked: Asked) -> None:
    for key in ("repeats", "warmup"):
        if getattr(asked, key) < 1:
            raise UserError(f"{key}={getattr(asked, key)}: must be at least 1")
    for key in ("splits", "batches"):
        values = getattr(asked, key)
        if values is not None and any(value < 1 for value in values):
            raise UserError(f"{key}={values}: give counts of at least 1")


def compared(rest: list[str], asked: Asked) -> list[Config]:
    """The twin first, then at each loop count the vanilla loop and the chosen supervision."""
    chosen = compose(rest)
    wanted = [chosen.loops] if asked.splits is None else asked.splits
    splits = [loops for loops in wanted if loops > 1]
    configs = [compose([*rest, "loops=1"])]
    for loops in splits:
        configs.append(compose([*rest, f"loops={loops}", "supervision=final"]))
        if chosen.supervision.name != "final":
            configs.append(compose([*rest, f"loops={loops}"]))
    for config in configs:  # as many steps as are taken
        config.budget.images = (asked.warmup + asked.repeats + 2) * config.batch_size
    return configs


def check_memory(configs: list[Config]) -> None:
    """Raises UserError where the arms, which all stay in memory, do not fit."""
    machine = machine_of(configs[0].trainer.accelerator, configs[0].trainer.precision)
    needs = [training_memory(config, machine.kind, machine.precision) for config in configs]
    total = sum(need.static for need in needs) + max(need.activations for need in needs)
    if machine.memory is not None and total > machine.memory:
        raise UserError(
            f"{len(configs)} arms of batch_size={configs[0].batch_size} take {binary(total)}, and "
            f"{machine.name} has {binary(machine.memory)}; give fewer splits or a smaller batch_size"
        )


def interleaved(takers: Sequence[Callable[[], Any]], asked: Asked, bar: "Bar") -> list[list[Any]]:
    """What each taker gave, turn by turn, without the warm-up. Every other turn runs backwards, so
    that a steady drift of the machine cancels."""
    taken: list[list[Any]] = [[] for _ in takers]
    for turn in range(asked.warmup + asked.repeats):
        order = range(len(takers)) if turn % 2 == 0 else reversed(range(len(takers)))
        for n in order:
            taken[n].append(takers[n]())
        bar.update((turn + 1) * bar.total // (asked.warmup + asked.repeats))
    return [values[asked.warmup :] for values in taken]


# --- training -------------------------------------------------------------------------------------


def train_rows(arms: list["Arm"], asked: Asked) -> list[dict[str, Any]]:
    from eltlab.progress import Bar
    from eltlab.timing import matmul_rate

    device, precision = arms[0].device, arms[0].precision
    images = (asked.warmup + asked.repeats) * sum(arm.config.batch_size for arm in arms)
    takers: list[Callable[[], Any]] = [arm.step for arm in arms]
    product = partial(matmul_rate, device, precision)
    with Bar("training steps", images) as bar:
        *steps, products = interleaved([*takers, product], asked, bar)
    peak = statistics.median(products)
    totals = [[sum(parts.values()) for parts in taken] for taken in steps]
    vanilla = {arm.config.loops: n for n, arm in enumerate(arms) if is_vanilla(arm.config)}
    rows = []
    for arm, taken, seconds in zip(arms, steps, totals, strict=True):
        config = arm.config
        flops = train_flops(config) * config.batch_size
        rows.append(
            {
                **facts(arm, "train", asked),
                "batch_size": config.batch_size,
                **spread("seconds", seconds),
                **{f"{part}_seconds": median(step[part] for step in taken) for part in taken[0]},
                **spread("ratio_to_twin", ratios(seconds, totals[0])),
                **spread("ratio_to_vanilla", ratios(seconds, totals[vanilla[config.loops]])),
                **rate(config.batch_size, flops, seconds, peak),
                "peak_memory_bytes": arm.peak_bytes(),
            }
        )
    return rows


def is_vanilla(config: Config) -> bool:
    return config.supervision.name == "final"


def train_table(rows: list[dict[str, Any]]) -> list[str]:
    head = ["training step", "seconds", "x twin", "x vanilla", "forward", "backward", "optimizer"]
    lines = [[*head, "data", "images/s", "utilisation", "peak", "predicted"]]
    for row in rows:
        parts = [
            span(row[f"{part}_seconds"]) for part in ("forward", "backward", "optimizer", "data")
        ]
        lines.append(
            [
                f"{row['unique_layers']} x {row['loops']} {row['supervision']}",
                span(row["seconds"]),
                f"{row['ratio_to_twin']:.2f}",
                f"{row['ratio_to_vanilla']:.2f}",
                *parts,
                f"{row['images_per_second']:,.1f}",
                f"{row['mfu']:.0%}",
                binary(row["peak_memory_bytes"]),
                binary(row["memory_training_bytes"]),
            ]
        )
    first = rows[0]
    where = f"{first['device']}, {first['precision']}, batch {first['batch_size']}"
    what = (
        f"utilisation of {si(first['matmul_flops_per_second'], 'FLOP/s')}, one large matrix product"
    )
    return [f"{where}, medians of {first['repeats']}; {what}", *columns(lines)]


# --- samples --------------------------------------------------------------------------------------


def sample_rows(arms: list["Arm"], data: "Data", asked: Asked, peak: float) -> list[dict[str, Any]]:
    """The twin, and each vanilla loop at its own count and, any-time, at one loop: the supervision
    makes no difference to what a pass costs."""
    from eltlab.elastic import Elastic
    from eltlab.progress import Bar

    drawn = [
        (arm, Elastic(arm.module.ema, arm.config, data.tokenizer), loops)
        for arm in arms
        if is_vanilla(arm.config)
        for loops in sorted({1, arm.config.loops}, reverse=True)
    ]
    rows = []
    for batch in asked.batches:
        images = (asked.warmup + asked.repeats) * batch * len(drawn)
        takers = [partial(draw_seconds, model, batch, loops) for _, model, loops in drawn]
        with Bar(f"samples, {batch} at a time", images) as bar:
            taken = interleaved(takers, asked, bar)
        for (arm, _, loops), seconds in zip(drawn, taken, strict=True):
            steps = arm.config.sampler.steps
            costs = sampling_bill(arm.config, asked_depths(loops, steps))
            rows.append(
                {
                    **facts(arm, "sample", asked),
                    "loops": loops,
                    "steps": steps,
                    "guidance": arm.config.sampler.guidance,
                    "batch_size": batch,
                    **costs,
                    **spread("seconds", seconds),
                    **spread("ratio_to_twin", ratios(seconds, taken[0])),
                    **rate(batch, costs["flops_per_sample"] * batch, seconds, peak),
                }
            )
    return rows


def draw_seconds(model: "Elastic", batch: int, loops: int) -> float:
    """Seconds of drawing so many samples, decoding and the way to the host included."""
    import torch

    labels = torch.arange(batch) % model.config.data.classes
    started = time.perf_counter()
    model.draw(labels, loops, seed=0)
    return time.perf_counter() - started


def sample_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [["samples", "at a time", "seconds", "x twin", "images/s", "utilisation"]]
    for row in rows:
        lines.append(
            [
                f"{row['unique_layers']} x {row['loops_train']} at {row['loops']}",
                str(row["batch_size"]),
                span(row["seconds"]),
                f"{row['ratio_to_twin']:.2f}",
                f"{row['images_per_second']:,.1f}",
                f"{row['mfu']:.0%}",
            ]
        )
    return [f"{rows[0]['steps']} sampling steps, guidance {rows[0]['guidance']:g}", *columns(lines)]


# --- rows -----------------------------------------------------------------------------------------


def facts(arm: "Arm", measure: str, asked: Asked) -> dict[str, Any]:
    """What every row says of its configuration and its machine."""
    from eltlab.machine import code_version, device_name

    config = arm.config
    return {
        "kind": "bench",
        "measure": measure,
        "name": config.name,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "code": code_version(),
        "device": device_name(arm.device),
        "precision": arm.precision,
        "seed": config.seed,
        "data": config.data.name,
        "objective": config.objective.name,
        "supervision": config.supervision.name,
        "model": config.model.name,
        "loops_train": config.loops,
        "loops": config.loops,
        "repeats": asked.repeats,
        "warmup": asked.warmup,
        **model_bill(config, arm.device.type, arm.precision),
        "cfg": results.recorded(config),
    }


def rate(images: int, flops: float, seconds: list[float], peak: float) -> dict[str, float]:
    """Throughput, and model FLOPs utilisation: of the rate of one large matrix product."""
    middle = statistics.median(seconds)
    return {
        "images_per_second": images / middle,
        "flops_per_second": flops / middle,
        "matmul_flops_per_second": peak,
        "mfu": flops / middle / peak,
    }


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {name: statistics.median(values), f"{name}_q25": low, f"{name}_q75": high}


def ratios(values: list[float], others: list[float]) -> list[float]:
    """Turn by turn: what slows the machine slows both."""
    return [value / other for value, other in zip(values, others, strict=True)]


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


if __name__ == "__main__":
    run_verb(main, usage)
