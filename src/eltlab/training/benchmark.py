"""Times training steps and sampling of a looped model, its vanilla loop and its twin, interleaved."""

import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from eltlab.analysis.bench_tables import sample_table, train_table
from eltlab.common.progress import Bar
from eltlab.common.seeds import slice_of_this_process
from eltlab.common.text import example_unit
from eltlab.common.torch_device import choose_device, choose_precision
from eltlab.config.cost.bill import model_bill, sampling_bill
from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.schema import Config
from eltlab.data.build import TrainingData, build_data
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.runs.row_files import append_rows, row_facts
from eltlab.training.timing import PHASES, TimedModel, interleave, measure_matmul_rate

Rows = list[dict[str, Any]]


class Call(NamedTuple):
    """The columns that all rows of one call of bench share; its models were timed interleaved."""

    call: str  # a random id
    repeats: int  # timed rounds
    warmup: int  # rounds before them


def benchmark(configs: list[Config], batches: list[int], repeats: int, warmup: int, out: Path) -> None:
    """Times the configurations, appends the rows to out and prints them as tables.

    Args:
        configs: of `benchmark_configs`.
        batches: how many samples are drawn at a time; empty to time training only.
    """
    device = choose_device(configs[0].trainer.accelerator)
    precision = choose_precision(configs[0].trainer.precision, device)
    data = build_data(configs[0])
    own = slice_of_this_process(configs[0].trainer.accumulate)
    models = [TimedModel(c, device, precision, data.batches(c, 0, device, own)) for c in configs]
    call = Call(uuid.uuid4().hex[:12], repeats, warmup)
    rows = train_rows(models, call)
    append_rows(out, rows)
    print(*train_table(rows), sep="\n", flush=True)
    rows = sample_rows(models, data, batches, call, rows[0]["matmul_flops_per_second"])
    if rows:
        append_rows(out, rows)
        print("", *sample_table(rows), sep="\n")
    print(f"rows: {out}")


def train_rows(models: list[TimedModel], call: Call) -> Rows:
    """A row per model."""
    actions: list[Callable[[], Any]] = [model.step for model in models]
    actions.append(partial(measure_matmul_rate, models[0].device, models[0].precision))
    images = sum(model.config.batch_size for model in models)
    unit = example_unit(models[0].config.data.shape)
    *timed, matmul_rates = run_rounds("training steps", actions, images, call, unit)
    peak = statistics.median(matmul_rates)
    seconds = [[step.seconds for step in steps] for steps in timed]
    rows = []
    for model, steps, times in zip(models, timed, seconds, strict=True):
        if model.is_vanilla:  # the first model of its loop count
            vanilla_times = times
        rows.append(
            {
                **benchmark_facts(model, "train", call),
                **time_facts(times, seconds[0], model.config.batch_size),
                **{f"{p}_seconds": statistics.median(s.phases[p] for s in steps) for p in PHASES},
                **quartiles("ratio_to_vanilla", np.divide(times, vanilla_times)),
                "flops_per_second": sum(step.flops for step in steps) / sum(times),
                "mfu": sum(step.model_flops for step in steps) / sum(times) / peak,
                "matmul_flops_per_second": peak,
                "peak_memory_bytes": model.peak_bytes(),
            }
        )
    return rows


def sample_rows(
    models: list[TimedModel], data: TrainingData, batches: list[int], call: Call, peak: float
) -> Rows:
    """A row per batch size and loop count: the twin, and each vanilla loop at its own count and at one loop.

    The other supervisions are not timed, because a pass costs the same whatever the model was trained with.
    """
    timed = [
        (model, AnytimeSampler(model.module.average, model.config, data.tokenizer), loops)
        for model in models
        if model.is_vanilla
        for loops in sorted({1, model.config.loops}, reverse=True)
    ]
    rows = []
    for batch in batches:
        actions = [partial(time_sampling, sampler, batch, loops) for _, sampler, loops in timed]
        label = f"samples, {batch} at a time"
        results = run_rounds(label, actions, batch * len(timed), call, "samples")
        seconds = [[duration for duration, _ in samplings] for samplings in results]
        for (model, _, loops), samplings, times in zip(timed, results, seconds, strict=True):
            config = replace(model.config, sampler=replace(model.config.sampler, batch=batch))
            # Noise and labels are the same every time, so the loops ran are too, even with halting.
            costs = sampling_bill(config, samplings[0][1])
            flops = costs["flops_per_sample"] * batch / statistics.median(times)
            rows.append(
                {
                    **benchmark_facts(model, "sample", call),
                    **model_bill(config, model.device.type, model.precision),
                    "loops": loops,
                    "steps": config.sampler.steps,
                    "guidance": config.sampler.guidance,
                    "halting": config.sampler.halting,
                    **costs,
                    **time_facts(times, seconds[0], batch),
                    "flops_per_second": flops,
                    "mfu": flops / peak,
                    "matmul_flops_per_second": peak,
                }
            )
    return rows


def run_rounds(
    label: str, actions: Sequence[Callable[[], Any]], images: int, call: Call, unit: str
) -> list[list[Any]]:
    """The interleaved results of the actions, under a progress bar. images: per round."""
    with Bar(label, (call.warmup + call.repeats) * images, unit=unit) as bar:
        return interleave(actions, call.repeats, call.warmup, lambda n: bar.update(n * images))


def time_sampling(sampler: AnytimeSampler, batch: int, loops: int) -> tuple[float, list[DepthDistribution]]:
    """Seconds of one batch of samples, with decoding and the copy to the host, and the loops it ran."""
    labels = torch.arange(batch) % sampler.config.data.classes
    started = time.perf_counter()
    depths = sampler.sample_batch(labels, loops, seed=0).depths
    return time.perf_counter() - started, depths


def benchmark_facts(model: TimedModel, measure: str, call: Call) -> dict[str, Any]:
    """The columns that every row of a benchmark has. measure: train or sample."""
    return {
        "kind": "bench",
        "measure": measure,
        **call._asdict(),
        "precision": model.precision,
        "loops": model.config.loops,
        # Microseconds, because `created` alone tells one timing of a machine from the next.
        **row_facts(model.config, model.device, model.precision, timespec="microseconds"),
    }


def time_facts(times: list[float], twin_times: list[float], batch: int) -> dict[str, Any]:
    """The columns of seconds per batch, absolute and relative to the twin."""
    return {
        "batch_size": batch,
        **quartiles("seconds", times),
        # Ratios within each round: what slows the machine for a while slows both models.
        **quartiles("ratio_to_twin", np.divide(times, twin_times)),
        "images_per_second": batch / statistics.median(times),
    }


def quartiles(name: str, values: Any) -> dict[str, float]:
    """Columns with the median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {name: middle, f"{name}_q25": low, f"{name}_q75": high}
