"""Rules across the keys of a run, and the values that follow from other keys. The rules of the data, which
also apply to encode, are in data_rules.py; ranges and choices of single keys are in schema.py."""

import math
import re
from typing import Any

from eltlab.common.errors import UserError
from eltlab.config.cost.flops import train_flops
from eltlab.config.data_rules import NATIVE, check_data, check_samples, choose_extractor
from eltlab.config.devices import check_shares
from eltlab.config.keys import check_divides, check_keys
from eltlab.config.sampling_schedules import check_schedule
from eltlab.config.schema import (
    DEFAULT_IMAGES,
    MODULATED_BLOCKS,
    Config,
    DeepConfig,
    DiffusionConfig,
    DiffusionSamplerConfig,
    EmaConfig,
    FinalConfig,
    IlsdConfig,
    MaskedSamplerConfig,
    RandomDepthConfig,
)

BUDGETS = ("images", "train_flops", "match")


def resolve(config: Config) -> Config:
    """Checks every rule and fills in what follows from other keys. Raises UserError. Reads no file."""
    choose_extractor(config.metrics, config.data)
    check_keys(config)
    check_shares(config)
    _check_split(config)
    _check_combination(config)
    _check_supervision(config)
    _check_data(config)
    check_average(config.ema)
    _check_budget(config)
    _check_sampling(config)
    _check_trainer(config)
    check_samples(config)
    if config.evaluate_loops is None:
        loops = config.loops
        powers = [2**k for k in range(loops.bit_length()) if 2**k < loops]
        config.evaluate_loops = [*range(1, loops + 1)] if loops <= 8 else [*powers, loops]
    if not config.evaluate_loops:
        raise UserError("evaluate_loops=[]: give at least one loop count, e.g. [1,2,4]")
    for schedule in config.evaluate_loops:
        check_schedule("evaluate_loops", schedule, config.sampler.steps)
    if config.name is None:
        config.name = short_name(config)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", config.name) or ".." in config.name:
        raise UserError(
            f"name={config.name}: use letters, digits, '.', '_', '-' and '/', starting with a letter "
            "or digit; it becomes a folder"
        )
    return config


def short_name(config: Config) -> str:
    """The start of a default name (run_name.py), and the whole default name in old versions."""
    names = (config.data.name, config.objective.name, config.model.name)
    return "-".join((*names, f"{config.unique_layers}x{config.loops}", config.supervision.name))


def _check_split(config: Config) -> None:
    """Splits the depth into unique layers times loops."""
    model = config.model
    check_divides("model.heads", model.heads, "model.width", model.width)
    outside = model.prelude + model.coda
    if config.unique_layers is None:
        looped, name = model.depth - outside, "model.depth"
        if outside:
            name = f"model.depth - model.prelude - model.coda = {model.depth} - {outside}"
        if looped < 1:
            raise UserError(
                f"model.depth={model.depth} leaves no layer to loop after model.prelude={model.prelude} and "
                f"model.coda={model.coda}; reduce them"
            )
        check_divides("loops", config.loops, name, looped, ", or set unique_layers")
        config.unique_layers = looped // config.loops
    # unique_layers sets the depth, so that equal networks have equal configurations.
    model.depth = outside + config.unique_layers * config.loops


def _check_combination(config: Config) -> None:
    model, objective = config.model, config.objective
    if model.block is None:
        model.block = objective.BLOCK
    modulated = model.block in MODULATED_BLOCKS
    if objective.INPUTS == "tokens" and modulated:
        raise UserError(
            f"model.block={model.block} requires a condition vector, but objective={objective.name} has a "
            "class token; choose post_norm or pre_norm, or objective=diffusion"
        )
    if model.cond_width is None:
        model.cond_width = model.width
    if model.dropout is None:
        model.dropout = objective.DROPOUT
    # The head of a masked network has no norm of its own before its first layer, and the state of pre_norm
    # grows from loop to loop. Heads of images always start with a norm.
    normed = objective.INPUTS == "tokens" and model.block == "pre_norm"
    if model.final_norm is None:
        model.final_norm = normed
    if model.final_norm and not normed:
        raise UserError(
            "model.final_norm=true: only masked models with model.block=pre_norm have this norm; remove it"
        )
    if model.cond_width != model.width and not modulated:
        raise UserError(
            f"model.cond_width={model.cond_width}: only blocks {' and '.join(MODULATED_BLOCKS)} take a "
            f"condition with its own width; remove it, or change model.block={model.block}"
        )
    if objective.INPUTS == "images" and model.width % 4:
        raise UserError(f"model.width={model.width}: sine-cosine positions require a multiple of 4")
    if isinstance(objective, DiffusionConfig) and objective.logsnr_min >= objective.logsnr_max:
        raise UserError(
            f"objective.logsnr_min={objective.logsnr_min} must be below "
            f"objective.logsnr_max={objective.logsnr_max}; the default is -15 and 15"
        )
    names = [name for name, kind in Config.KINDS["sampler"].items() if kind is objective.SAMPLER]
    if config.sampler.name not in names:
        raise UserError(
            f"sampler.name={config.sampler.name} does not draw from objective={objective.name}; "
            f"choose {' or '.join(names)}"
        )
    assert isinstance(config.sampler, objective.SAMPLER)
    if len(config.optim.betas) != 2:
        raise UserError(f"optim.betas={config.optim.betas}: give two numbers, e.g. [0.9,0.99]")


def _check_supervision(config: Config) -> None:
    if config.loops == 1:
        # With one exit there is no student, so every supervision is `final`. The only loop starts from the
        # input, so the input is not injected again. Both are set here, before the run is named.
        config.supervision = FinalConfig(name="final")
        config.model.inject_input = False
    supervision, loops = config.supervision, config.loops
    if isinstance(supervision, IlsdConfig) and supervision.min_loops >= loops:
        raise UserError(
            f"supervision.min_loops={supervision.min_loops} leaves no student below loops={loops}; "
            f"choose 1 to {loops - 1}"
        )
    if isinstance(supervision, DeepConfig):
        inner, is_list = supervision.inner, isinstance(supervision.inner, list)
        weights = inner if is_list else [inner] * (loops - 1)
        is_valid = all(type(w) in (int, float) and 0 <= w < math.inf for w in weights)
        if len(weights) != loops - 1 or not is_valid:
            raise UserError(
                f"supervision.inner={inner}: give one weight of at least 0 for all exits below the last, or "
                f"a list of loops - 1 = {loops - 1}; the last exit has weight 1"
            )
    if not isinstance(supervision, RandomDepthConfig):
        return
    if supervision.max_loops is None:
        supervision.max_loops = loops
    low, high, mean = supervision.min_loops, supervision.max_loops, supervision.mean
    if not low <= high <= loops:
        raise UserError(
            f"supervision.min_loops={low} and supervision.max_loops={high}: give a range within "
            f"1 to loops={loops}"
        )
    if supervision.law == "uniform" and mean is not None:
        raise UserError(
            f"supervision.mean={mean}: the mean of law=uniform is the middle of the range; "
            "choose supervision.law=poisson"
        )
    if supervision.law == "poisson" and (mean is None or not low < mean < high):
        raise UserError(
            f"supervision.mean={mean}: supervision.law=poisson requires a mean between "
            f"supervision.min_loops={low} and supervision.max_loops={high}"
        )


def check_average(ema: EmaConfig) -> None:
    """Selects the first average if none is, and sorts them, so that equal runs have equal configurations.
    Raises UserError if the selected one is not kept."""
    lengths = ema.lengths
    if not lengths or len(set(lengths)) < len(lengths):
        raise UserError(f"ema.lengths={lengths}: give at least one length, each once, e.g. [0.05,0.1]")
    if ema.length is None:
        ema.length = lengths[0]
    if ema.length not in lengths:
        raise UserError(
            f"ema.length={ema.length}: the run keeps no such average; choose one of ema.lengths, "
            f"{', '.join(map(str, lengths))}"
        )
    ema.lengths = sorted(lengths)


def check_one_budget(budget: Any) -> None:
    """Raises UserError if several keys of a budget section are set."""
    given = {f"budget.{key}": budget[key] for key in BUDGETS if budget[key] is not None}
    if len(given) > 1:
        both = " and ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"{both}: several budgets at once; give one of them")


def _check_budget(config: Config) -> None:
    """Converts FLOPs to images, or sets the default, so that equal runs have equal configurations."""
    budget = config.budget
    check_one_budget(vars(budget))
    if budget.train_flops is not None:
        step = train_flops(config) * config.batch_size
        steps = round(budget.train_flops / step)
        if steps < 1:
            raise UserError(
                f"budget.train_flops={budget.train_flops:g}: less than one step; a step of "
                f"batch_size={config.batch_size} takes {step:.3g} FLOPs"
            )
        budget.images, budget.train_flops = steps * config.batch_size, None
    if budget.images is None:
        budget.images = DEFAULT_IMAGES
    budget.images = config.images  # in whole batches: 1,000 and 1,024 images at batch 128 are one run


def _check_sampling(config: Config) -> None:
    sampler = config.sampler
    if sampler.guidance != 1 and config.objective.label_dropout == 0:
        raise UserError(
            f"sampler.guidance={sampler.guidance} requires an unconditional model, but "
            "objective.label_dropout=0 trains none; set guidance to 1"
        )
    if sampler.loops is not None:
        check_schedule("sampler.loops", sampler.loops, sampler.steps)
    if isinstance(sampler, DiffusionSamplerConfig):
        bounded = config.data.kind == "pixels"
        if sampler.clip is None:
            sampler.clip = bounded
        if sampler.clip and not bounded:
            raise UserError(
                f"sampler.clip=true keeps pixels in [-1, 1]; data={config.data.name} holds latents, which "
                "have no bounds. Remove it."
            )
    tokens = config.data.tokens
    if isinstance(sampler, MaskedSamplerConfig) and sampler.steps > tokens:
        raise UserError(
            f"sampler.steps={sampler.steps}: {tokens} tokens are unmasked in at most {tokens} steps; "
            f"choose 1 to {tokens}"
        )


def _check_data(config: Config) -> None:
    data = config.data
    check_divides("data.patch", data.patch, "data.size", data.size)
    check_divides("data.frame_patch", data.frame_patch, "data.frames", data.frames)
    holds = {"latents": "images", "tokens": "tokens"}.get(data.kind)
    if holds is None and data.channels not in (1, 3):
        raise UserError(f"data.channels={data.channels}: choose one of 1, 3")
    if holds is not None and holds != config.objective.INPUTS:
        raise UserError(
            f"data={data.name} holds {data.kind}, and objective={config.objective.name} corrupts "
            f"{config.objective.INPUTS}; choose a different data or objective"
        )
    check_data(data, config.metrics)
    if data.name in NATIVE and data.in_memory is not None:
        raise UserError(
            f"data.in_memory={str(data.in_memory).lower()} applies to sets of files only; data={data.name} "
            "is always in memory. Remove it."
        )


def _check_trainer(config: Config) -> None:
    trainer, slurm = config.trainer, config.trainer.slurm
    if slurm.hours * 3600 <= slurm.signal_seconds:
        raise UserError(
            f"trainer.slurm.hours={slurm.hours}: shorter than trainer.slurm.signal_seconds="
            f"{slurm.signal_seconds}; give more hours"
        )
    if trainer.name == "slurm" and slurm.cluster == "local" and trainer.nodes > 1:
        raise UserError(f"trainer.nodes={trainer.nodes}: trainer.slurm.cluster=local has one node")
