"""The bill of a configuration as text, next to its twins."""

from dataclasses import replace
from typing import Any

from eltlab.common.machine import Machine
from eltlab.common.text import format_bytes, format_duration, format_si, format_table
from eltlab.config.cost.bill import bill
from eltlab.config.cost.memory import inference_memory, training_memory
from eltlab.config.cost.rates import find_rate, rate_lines
from eltlab.config.cost.twins import iso_params, twin
from eltlab.config.schema import Config, TrainerConfig


def with_twins(config: Config) -> list[Config]:
    """The configuration, its iso-compute and its iso-parameter twin."""
    return [config, twin(config), iso_params(config)]


def timed_bill(config: Config, machine: Machine) -> dict[str, Any]:
    """The bill, and the seconds of training and of one sample where this machine is calibrated."""
    costs = bill(config, machine.kind, machine.precision)
    rate = find_rate(config, machine)
    train = rate and costs["train_flops_total"] / (rate.train * config.world)
    sample = rate and costs["flops_per_sample"] / rate.sample
    return {**costs, "train_seconds": train, "sample_seconds": sample}


TWINS = ("iso-compute twin", "iso-parameter twin")


# What is printed: the name of a line, the key of the bill, how it is written.
LINES = (
    ("width", "width", str),
    ("parameters", "params_total", format_si),
    ("  blocks", "params_blocks", format_si),
    ("  embeddings", "params_embedding", format_si),
    ("  head", "params_head", format_si),
    ("MACs a pass", "macs_per_pass", format_si),
    ("  layers", "macs_per_pass_trunk", format_si),
    ("    attention", "macs_per_pass_attention", format_si),
    ("passes a sample (NFE)", "nfe", str),
    ("MACs a sample", "macs_per_sample", format_si),
    ("FLOPs a sample", "flops_per_sample", format_si),
    ("training FLOPs an image", "train_flops_per_image", format_si),
    ("training images", "images", "{:,.9g}".format),
    ("training FLOPs", "train_flops_total", format_si),
    ("training memory", "memory_training_bytes", format_bytes),
    ("sampling memory", "memory_inference_bytes", format_bytes),
    ("training time", "train_seconds", format_duration),
    ("sampling time, each", "sample_seconds", format_duration),
)


def bill_lines(config: Config, machine: Machine) -> list[str]:
    """The bill beside those of the twins, with their ratios to it; alone where it is its own twin."""
    arms = with_twins(config) if config.loops > 1 else [config]
    own, *others = bills = [timed_bill(arm, machine) for arm in arms]
    splits = [f"{costs['unique_layers']} x {costs['loops']}" for costs in bills]
    rows = [
        ["", "this", *(cell for name in TWINS for cell in (name, "ratio"))],
        ["layers x loops", splits[0], *(cell for split in splits[1:] for cell in (split, ""))],
    ]
    rows[0] = rows[0][: len(rows[1])]
    for label, key, write in LINES:
        if own[key] is not None:
            beside = [(write(other[key]), ratio(other[key], own[key])) for other in others]
            rows.append([label, write(own[key]), *(cell for pair in beside for cell in pair)])
    where = f"{dealt(config)}, {machine.precision} on {machine.kind}"
    return [*format_table(rows), f"memory and times: {where}", *rate_lines(config, machine)]


def dealt(config: Config) -> str:
    """The batch, and how it goes over devices and pieces."""
    text, pieces = f"batch {config.batch_size}", config.trainer.accumulate
    text += f" over {config.world} devices" if config.world > 1 else ""
    return text + (f" in {pieces} pieces" if pieces > 1 else "")


def ratio(value: float, own: float) -> str:
    return f"{value / own:.2f}" if own else ""


def split_lines(asked: int, config: Config) -> list[str]:
    """What a split by unique_layers does to the depth that was asked for. Nothing where it keeps it."""
    if asked == config.model.depth:
        return []
    return [
        f"unique_layers={config.unique_layers} sets the split: {config.model.depth} layers a pass, "
        f"{config.model.depth / asked:.2f}x the {asked} of model={config.model.name}"
    ]


def halting_lines(config: Config) -> list[str]:
    halting = config.sampler.halting
    return [] if halting is None else [f"sampler.halting={halting:g}: a sample costs this at most"]


def memory_lines(config: Config, machine: Machine, limit: float | None) -> list[str]:
    """Where the run takes more than there is: by how much, and what would make it fit."""
    if limit is None or needed(config, machine) <= limit:
        return []
    training = training_memory(config, machine.kind, machine.precision)
    sampling = inference_memory(config, machine.kind, machine.precision)
    lines = [
        f"does not fit: training takes {format_bytes(training.total)}, {format_bytes(training.static)} of "
        f"it for weights, gradients, optimizer and average, sampling {format_bytes(sampling.total)}; there "
        f"are {format_bytes(limit)}"
    ]
    mends = [f"  {text}: {format_bytes(size)}" for text, size in mended(config, machine, limit)]
    return [*lines, "it would fit with", *mends] if mends else [*lines, "no batch_size fits"]


def needed(config: Config, machine: Machine) -> int:
    """Bytes that a run takes at its worst: it trains, then it samples."""
    both = (training_memory, inference_memory)
    return max(of(config, machine.kind, machine.precision).total for of in both)


def mended(config: Config, machine: Machine, limit: float) -> list[tuple[str, int]]:
    """Settings under which training fits, each at the largest batch it fits at, with what it takes."""
    again = ("trainer.recompute=true", {"recompute": True})
    half = ("trainer.precision=bf16-mixed", {"precision": "bf16-mixed"})
    both = (f"{again[0]} {half[0]}", again[1] | half[1])
    tried: list[TrainerConfig] = []
    found = []
    for text, changes in (("", {}), again, half, both):
        trainer = replace(config.trainer, **{"precision": machine.precision} | changes)
        if trainer in tried:
            continue  # it is so already
        tried.append(trainer)
        for halvings in range(
            config.micro_batch_size.bit_length()
        ):  # each device keeps an image at least
            batch = (config.micro_batch_size >> halvings) * (
                config.batch_size // config.micro_batch_size
            )
            smaller = replace(config, trainer=trainer, batch_size=batch)
            size = needed(smaller, machine._replace(precision=trainer.precision))
            if size <= limit:
                setting = f"batch_size={batch}" if halvings else ""
                found.append((f"{text} {setting}".strip(), size))
                break
    return found
