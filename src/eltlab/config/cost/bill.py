"""The bill of a configuration: its sizes, FLOPs and bytes, under the names that rows use; and as text."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from eltlab.common.machine_facts import Machine
from eltlab.common.text import format_bytes, format_duration, format_si, format_table
from eltlab.config.cost import flops
from eltlab.config.cost.measured_rates import find_rate, rate_lines
from eltlab.config.cost.memory import inference_memory, training_memory
from eltlab.config.cost.twins import iso_params, twin
from eltlab.config.depth_distribution import DepthDistribution
from eltlab.config.network_shape import Network, network
from eltlab.config.sampling_schedules import LoopSchedule
from eltlab.config.schema import Config, ModelConfig

# A run is short below 200 steps: AdamW's second moment averages over 1/(1 - β₂) = 100 with β₂ = 0.99.
# Below 10 steps a warm-up is a jump, and an average of the weights hardly averages.
SHORT_RUN, SHORT_RAMP = 200, 10

# What is printed: the name of a line, the key of the bill, and how its value is written.
LINES = (
    ("width", "width", str),
    ("parameters", "params_total", format_si),
    ("  blocks", "params_blocks", format_si),
    ("  embeddings", "params_embedding", format_si),
    ("  head", "params_head", format_si),
    ("MACs per pass", "macs_per_pass", format_si),
    ("  layers", "macs_per_pass_trunk", format_si),
    ("    attention", "macs_per_pass_attention", format_si),
    ("passes per sample (NFE)", "nfe", str),
    ("MACs per sample", "macs_per_sample", format_si),
    ("FLOPs per sample", "flops_per_sample", format_si),
    ("training FLOPs per image", "train_flops_per_image", format_si),
    ("training images", "images", "{:,.9g}".format),
    ("optimizer steps", "train_steps", "{:,}".format),
    ("training FLOPs", "train_flops_total", format_si),
    ("training memory", "memory_training_bytes", format_bytes),
    ("sampling memory", "memory_inference_bytes", format_bytes),
    ("training time", "train_seconds", format_duration),
    ("sampling time per sample", "sample_seconds", format_duration),
)


def bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """Sizes and costs of a resolved configuration: of the whole run, and of one sample at its loops.

    device (cpu | cuda) and precision (32-true | bf16-mixed) affect the memory only.
    """
    loops: LoopSchedule = config.loops if config.sampler.loops is None else config.sampler.loops
    depths = flops.requested_depths(loops, config.sampler.steps)
    return {
        "loops": config.loops,
        **model_bill(config, device, precision),
        **sampling_bill(config, depths),
        "images": config.images,
        "train_steps": config.steps,  # not `steps`, which in a row are those of the sampler
        "train_flops_total": int_if_whole(flops.budget_flops(config)),
    }


def model_bill(config: Config, device: str, precision: str) -> dict[str, Any]:
    """What depends neither on the loops of a sample nor on the length of training."""
    net = network(config)
    return {
        "unique_layers": config.unique_layers,
        "depth": config.model.depth,
        "width": net.width,
        "tokens": net.tokens,
        "params_total": flops.params_total(net),
        "params_blocks": flops.params_blocks(net),
        "params_embedding": flops.params_embedding(net),
        "params_head": flops.params_head(net),
        "train_flops_per_image": int_if_whole(flops.train_flops(config)),
        "memory_training_bytes": training_memory(config, device, precision).total,
        "memory_inference_bytes": inference_memory(config, device, precision).total,
    }


def sampling_bill(config: Config, depths: Sequence[DepthDistribution]) -> dict[str, Any]:
    """NFE, and the MACs of a sample and of its mean pass, if the sampling steps run these depths."""
    net, nfe = network(config), sum(flops.evaluations_per_step(config))

    def total(macs_of_pass: Callable[[Network, int], int]) -> float:
        return flops.cost_per_sample(config, depths, partial(macs_of_pass, net))

    macs, trunk = total(flops.macs_per_pass), total(flops.macs_trunk)
    return {
        "macs_per_pass": int_if_whole(macs / nfe),
        "macs_per_pass_trunk": int_if_whole(trunk / nfe),
        "macs_per_pass_attention": int_if_whole(total(flops.macs_attention) / nfe),
        "nfe": nfe,
        "macs_per_sample": int_if_whole(macs),
        "macs_per_sample_trunk": int_if_whole(trunk),
        "flops_per_sample": int_if_whole(2 * macs),
    }


def int_if_whole(value: float) -> float:
    """A whole number as an int: rows say 4 loops, not 4.0."""
    return int(value) if value == int(value) else value


def with_twins(config: Config) -> list[Config]:
    """The configuration, its iso-compute twin and its iso-parameter twin."""
    return [config, twin(config), iso_params(config)]


def timed_bill(config: Config, machine: Machine) -> dict[str, Any]:
    """The bill, with the seconds of training and of one sample, or None if this machine is not calibrated."""
    costs = bill(config, machine.kind, machine.precision)
    rate = find_rate(config, machine)
    train = rate and costs["train_flops_total"] / (rate.train * config.world)
    sample = rate and costs["flops_per_sample"] / rate.sample
    return {**costs, "train_seconds": train, "sample_seconds": sample}


def bill_lines(config: Config, machine: Machine) -> list[str]:
    """The bill next to those of the twins, with their ratios to it. A unique-layer model has no twins."""
    arms = with_twins(config) if config.loops > 1 else [config]
    own, *twins = bills = [timed_bill(arm, machine) for arm in arms]
    header, splits = ["", "this"], ["layers x loops"]
    if twins:
        header += ["iso-compute twin", "ratio", "iso-parameter twin", "ratio"]
    for costs in bills:
        splits += [f"{costs['unique_layers']} x {costs['loops']}", ""]
    rows = [header, splits[: len(header)]]
    for label, key, write in LINES:
        if own[key] is not None:
            row = [label, write(own[key])]
            for costs in twins:
                row += [write(costs[key]), f"{costs[key] / own[key]:.2f}" if own[key] else ""]
            rows.append(row)
    batch, micro_batches = f"batch {config.batch_size}", config.trainer.accumulate
    batch += f" over {config.world} devices" if config.world > 1 else ""
    batch += f" in {micro_batches} micro-batches" if micro_batches > 1 else ""
    batch += f", sampling {config.sampler.batch} at a time"
    setting = f"memory and times: {batch}, {machine.precision} on {machine.kind}"
    return [*format_table(rows), *schedule_lines(config), setting, *rate_lines(config, machine)]


def schedule_lines(config: Config) -> list[str]:
    """Warm-up, decay of the learning rate and averages of the weights, in steps of this run, with a warning
    if the run is too short for them."""
    optim, lengths, steps = config.optim, config.ema.lengths, config.steps
    warmup, shortest = optim.warmup * steps, min(lengths) * steps
    then = "then constant" if optim.schedule == "constant" else f"then {optim.schedule} to 0"
    averages = " and ".join(f"{length:g} ({length * steps:,.0f} steps)" for length in lengths)
    images = f"{warmup:,.0f} steps, {warmup * config.batch_size:,.0f} images"
    line = f"learning rate: warm-up {optim.warmup:.1%} ({images}), {then}; EMA lengths {averages}"
    short = []
    if steps < SHORT_RUN:
        short.append(f"fewer than {SHORT_RUN} steps")
    if 0 < warmup < SHORT_RAMP:
        short.append(f"optim.warmup={optim.warmup:g} is {warmup:.3g} steps")
    if shortest < SHORT_RAMP:
        short.append(f"ema.lengths has {min(lengths):g}, {shortest:.3g} steps")
    if not short:
        return [line]
    return [line, f"warning: a short run of {steps:,} steps: {', '.join(short)}; train longer"]


def preset_note(model: ModelConfig, preset: ModelConfig, given: Collection[str]) -> list[str]:
    """Says which sizes stayed those of the chosen model= while model.width was changed.

    preset: the sizes in the file of model=; given: the keys that the user set.
    """
    kept = []
    for key, what, now, before in (
        (
            "model.mlp_width",
            "times the width",
            model.mlp_width / model.width,
            preset.mlp_width / preset.width,
        ),
        ("model.heads", "wide each", model.width / model.heads, preset.width / preset.heads),
    ):
        if key not in given and now != before:
            value = getattr(model, key.partition(".")[2])
            kept.append(f"{key}={value} stays, {now:g} {what} instead of {before:g}")
    return [f"model.width={model.width}: " + "; ".join(kept)] if kept else []


def note_lines(config: Config, machine: Machine, limit: float | None, requested_depth: int) -> list[str]:
    """Says if unique_layers changed the requested depth, if passes may halt, and if a run needs more than
    `limit` bytes, with the settings that would fit."""
    notes, halting = [], config.sampler.halting
    if requested_depth != config.model.depth:
        notes.append(
            f"unique_layers={config.unique_layers} sets the split: {config.model.depth} layers per pass, "
            f"{config.model.depth / requested_depth:.2f}x the {requested_depth} of model={config.model.name}"
        )
    if halting is not None:
        notes.append(f"sampler.halting={halting:g}: a sample costs this at most")
    if limit is not None and peak_bytes(config, machine) > limit:
        training = training_memory(config, machine.kind, machine.precision)
        sampling = inference_memory(config, machine.kind, machine.precision)
        notes.append(
            f"does not fit: training takes {format_bytes(training.total)}, {format_bytes(training.static)} "
            f"of it for weights, gradients, optimizer and averages, sampling {format_bytes(sampling.total)}; "
            f"{format_bytes(limit)} are available"
        )
        fitting = find_fit(config, machine, limit)
        notes.append("it would fit with" if fitting else "no batch fits")
        notes += [f"  {text}: {format_bytes(size)}" for text, size in fitting]
    return notes


def peak_bytes(config: Config, machine: Machine) -> int:
    """Peak bytes of a run, which trains and then samples."""
    both = (training_memory, inference_memory)
    return max(memory(config, machine.kind, machine.precision).total for memory in both)


def find_fit(config: Config, machine: Machine, limit: float) -> list[tuple[str, int]]:
    """Settings with which a run fits, each at the largest batches that fit, and the bytes they take."""
    recompute, half = {"recompute": True}, {"precision": "bf16-mixed"}
    now = replace(config.trainer, precision=machine.precision)
    found = []
    for changes in ({}, recompute, half, recompute | half):
        if any(getattr(now, key) == value for key, value in changes.items()):
            continue  # the run has this setting already
        text = [f"trainer.{key}={value}".lower() for key, value in changes.items()]
        trainer = replace(now, **changes)
        here = machine._replace(precision=trainer.precision)
        smaller = shrink_batches(replace(config, trainer=trainer), here, limit)
        if smaller is not None:
            if smaller.batch_size < config.batch_size:
                text.append(f"batch_size={smaller.batch_size}")
            if smaller.sampler.batch < config.sampler.batch:
                text.append(f"sampler.batch={smaller.sampler.batch}")
            found.append((" ".join(text), peak_bytes(smaller, here)))
    return found


def shrink_batches(config: Config, machine: Machine, limit: float) -> Config | None:
    """The configuration with both batches halved until training and sampling fit, or None if they cannot:
    batch_size until each micro-batch has one image left, sampler.batch until one sample is left."""
    kind, precision = machine.kind, machine.precision
    while training_memory(config, kind, precision).total > limit:
        micro_batches = config.batch_size // config.micro_batch_size
        if config.micro_batch_size == 1:
            return None
        config = replace(config, batch_size=config.micro_batch_size // 2 * micro_batches)
    while inference_memory(config, kind, precision).total > limit:
        if config.sampler.batch == 1:
            return None
        config = replace(config, sampler=replace(config.sampler, batch=config.sampler.batch // 2))
    return config
