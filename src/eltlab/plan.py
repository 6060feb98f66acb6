"""python -m eltlab.plan [overrides]: what fit with these overrides costs, beside its twins."""

import json
import math
from dataclasses import dataclass, replace
from typing import Any

from eltlab import calibration
from eltlab.bill import bill
from eltlab.cli import options, own_keys, run_verb
from eltlab.compose import compose, compose_node, parse_overrides
from eltlab.config import Config, TrainerConfig
from eltlab.errors import UserError
from eltlab.machine import Machine, machine_of
from eltlab.memory import inference_memory, training_memory
from eltlab.text import binary, columns, si, span
from eltlab.twins import iso_params, twin

GIB = 2**30


@dataclass
class Asked:
    format: str = "text"
    calibrate: bool = False
    memory: float | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes exactly fit's overrides, needs neither data nor weights, and loads no torch. Beside the\n"
        "configuration: the unique-layer model of equal compute and the one of equal size. MACs are\n"
        "multiply-adds; 1 MAC = 2 FLOPs. And its own keys:\n\n"
        "  format=json       one JSON object on stdout, and nothing else\n"
        "  calibrate=true    times a few steps and passes here first; later plans then show times\n"
        "  memory=80         GiB of the device it is to fit; default: that of this machine\n\n"
        f"choices:\n{options()}\n\n"
        "examples:\n"
        "  python -m eltlab.plan model=elt_b loops=12\n"
        "  python -m eltlab.plan experiment=paper/dit_32 trainer.accelerator=cuda memory=80\n"
        "  python -m eltlab.plan supervision=deep budget.match={supervision:final}"
    )


def main(overrides: list[str]) -> None:
    asked, rest = own_keys(overrides, Asked())
    if asked.format not in ("text", "json"):
        raise UserError(f"format={asked.format}: choose one of text, json")
    if asked.memory is not None and not 0 < asked.memory < math.inf:
        raise UserError(f"memory={asked.memory:g}: must be a number above 0, in GiB")
    config = compose(rest)
    machine = machine_of(config.trainer.accelerator, config.trainer.precision)
    arms = compared(config)
    if asked.calibrate:
        calibration.calibrate(arms, machine)
    limit = machine.memory if asked.memory is None else asked.memory * GIB
    if asked.format == "json":
        costs = [timed_bill(arm, machine) for arm in arms]
        keys = ("twin", "iso_params")
        print(json.dumps(costs[0] | dict(zip(keys, costs[1:], strict=True))))
        return
    notes = split_lines(rest, config) + halting_lines(config) + memory_lines(config, machine, limit)
    print(config.name, *bill_lines(config, machine), *notes, sep="\n")


def compared(config: Config) -> list[Config]:
    """The configuration, its iso-compute and its iso-parameter twin."""
    return [config, twin(config), iso_params(config)]


def timed_bill(config: Config, machine: Machine) -> dict[str, Any]:
    """The bill, and the seconds of training and of one sample where this machine is calibrated."""
    costs = bill(config, machine.kind, machine.precision)
    rate = calibration.rate_of(config, machine)
    train = rate and costs["train_flops_total"] / (rate.train * config.world)
    sample = rate and costs["flops_per_sample"] / rate.sample
    return {**costs, "train_seconds": train, "sample_seconds": sample}


# --- as text --------------------------------------------------------------------------------------

TWINS = ("iso-compute twin", "iso-parameter twin")

# What is printed: the name of a line, the key of the bill, how it is written.
LINES = (
    ("width", "width", str),
    ("parameters", "params_total", si),
    ("  blocks", "params_blocks", si),
    ("  embeddings", "params_embedding", si),
    ("  head", "params_head", si),
    ("MACs a pass", "macs_per_pass", si),
    ("  layers", "macs_per_pass_trunk", si),
    ("    attention", "macs_per_pass_attention", si),
    ("passes a sample (NFE)", "nfe", str),
    ("MACs a sample", "macs_per_sample", si),
    ("FLOPs a sample", "flops_per_sample", si),
    ("training FLOPs an image", "train_flops_per_image", si),
    ("training images", "images", "{:,.9g}".format),
    ("training FLOPs", "train_flops_total", si),
    ("training memory", "memory_training_bytes", binary),
    ("sampling memory", "memory_inference_bytes", binary),
    ("training time", "train_seconds", span),
    ("sampling time, each", "sample_seconds", span),
)


def bill_lines(config: Config, machine: Machine) -> list[str]:
    """The bill beside those of the twins, with their ratios to it; alone where it is its own twin."""
    arms = compared(config) if config.loops > 1 else [config]
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
    return [*columns(rows), f"memory and times: {where}", *calibration.note(config, machine)]


def dealt(config: Config) -> str:
    """The batch, and how it goes over devices and pieces."""
    text, pieces = f"batch {config.batch_size}", config.trainer.accumulate
    text += f" over {config.world} devices" if config.world > 1 else ""
    return text + (f" in {pieces} pieces" if pieces > 1 else "")


def ratio(value: float, own: float) -> str:
    return f"{value / own:.2f}" if own else ""


def split_lines(overrides: list[str], config: Config) -> list[str]:
    """What a split by unique_layers does to the depth of the model. Nothing where it keeps it."""
    asked = compose_node(parse_overrides(overrides)).model.depth
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
        f"does not fit: training takes {binary(training.total)}, {binary(training.static)} of it for "
        f"weights, gradients, optimizer and average, sampling {binary(sampling.total)}; there are "
        f"{binary(limit)}"
    ]
    mends = [f"  {text}: {binary(size)}" for text, size in mended(config, machine, limit)]
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
            config.share_size.bit_length()
        ):  # each device keeps an image at least
            batch = (config.share_size >> halvings) * (config.batch_size // config.share_size)
            smaller = replace(config, trainer=trainer, batch_size=batch)
            size = needed(smaller, machine._replace(precision=trainer.precision))
            if size <= limit:
                setting = f"batch_size={batch}" if halvings else ""
                found.append((f"{text} {setting}".strip(), size))
                break
    return found


if __name__ == "__main__":
    run_verb(main, usage, stopped="nothing is lost")
