"""The rules across fields of a run's configuration, each with a message that says the mend; those of its
data are in data_rules.py."""

import math
import re
from typing import Any

from eltlab.common.errors import UserError
from eltlab.config.checks import at_least, divides, one_of, within
from eltlab.config.cost.flops import train_flops
from eltlab.config.data_rules import (
    NATIVE,
    check_encoded_keys,
    check_metric_places,
    check_samples,
    check_source,
    choose_extractor,
)
from eltlab.config.depths import LAWS
from eltlab.config.devices import check_shares
from eltlab.config.flat import flatten
from eltlab.config.schedules import SCHEDULE_FORMS, is_loop_schedule
from eltlab.config.schema import (
    DEFAULT_IMAGES,
    MODULATED_BLOCKS,
    Config,
    DeepConfig,
    DiffusionConfig,
    DiffusionSamplerConfig,
    FinalConfig,
    FlowConfig,
    IlsdConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    RandomDepthConfig,
)

BLOCKS = ("post_norm", "pre_norm", "adaln", "film")
BUDGETS = ("images", "train_flops", "match")


def resolve(config: Config) -> Config:
    """Checks every rule and fills in what follows from other keys. Raises UserError."""
    choose_extractor(config.metrics, config.data)
    _check_numbers(config)
    _check_dial(config)
    _check_combination(config)
    _check_supervision(config)
    _check_budget(config)
    _check_sampling(config)
    _check_data(config)
    _check_slurm(config)
    check_samples(config)
    if config.evaluate_loops is None:
        config.evaluate_loops = default_evaluate_loops(config.loops)
    if not config.evaluate_loops or min(config.evaluate_loops) < 1:
        raise UserError(
            f"evaluate_loops={config.evaluate_loops}: give loop counts of at least 1, e.g. [1,2,4]"
        )
    if config.name is None:
        config.name = default_name(config)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", config.name) or ".." in config.name:
        raise UserError(
            f"name={config.name}: use letters, digits, '.', '_', '-' and '/', starting with a letter "
            "or digit; it becomes a folder"
        )
    return config


def default_evaluate_loops(loops: int) -> list[int]:
    """Every loop count up to eight; above, powers of two and the trained count."""
    if loops <= 8:
        return list(range(1, loops + 1))
    return [2**k for k in range(loops.bit_length()) if 2**k < loops] + [loops]


def default_name(config: Config) -> str:
    split = f"{config.unique_layers}x{config.loops}"
    parts = (config.data.name, config.objective.name, config.model.name, split)
    return "-".join((*parts, config.supervision.name))


def _check_numbers(config: Config) -> None:
    for key, value in flatten(config).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{key}={value}: must be a finite number")
    at_least(config, 1, "loops batch_size budget.images model.width model.heads model.mlp_width")
    at_least(config, 1, "model.depth data.size data.patch sampler.steps metrics.samples")
    at_least(config, 1, "trainer.log_every unique_layers model.cond_width data.channels")
    at_least(config, 1, "data.frames data.frame_patch")
    at_least(config, 2, "data.codebook data.classes")
    at_least(config, 0, "model.prelude model.coda data.workers trainer.validations")
    at_least(config, 0, "optim.lr optim.weight_decay optim.warmup_images optim.clip")
    at_least(config, 0, "trainer.checkpoint_seconds trainer.grids seed sampler.guidance")
    within(config, 0, 1, "model.dropout objective.label_dropout", open_end=True)
    within(config, 0, 1, "ema.decay", open_end=True)
    one_of(config, "optim.schedule", ("constant", "cosine"))
    one_of(config, "trainer.precision", ("auto", "32-true", "bf16-mixed"))
    one_of(config, "trainer.accelerator", ("auto", "cpu", "cuda"))
    one_of(config, "trainer.strategy", ("auto", "ddp", "fsdp"))
    at_least(config, 1, "trainer.devices trainer.nodes trainer.accumulate")
    check_shares(config)
    betas = config.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas}: give two numbers in [0, 1), e.g. [0.9,0.99]")


def _check_slurm(config: Config) -> None:
    at_least(config, 1, "trainer.slurm.cpus_per_task trainer.slurm.signal_seconds")
    at_least(config, 1, "trainer.slurm.memory")
    one_of(config, "trainer.name", ("local", "slurm"))
    one_of(config, "trainer.slurm.cluster", ("slurm", "local"))
    trainer, slurm = config.trainer, config.trainer.slurm
    if slurm.hours * 3600 <= slurm.signal_seconds:
        raise UserError(
            f"trainer.slurm.hours={slurm.hours}: over before trainer.slurm.signal_seconds="
            f"{slurm.signal_seconds} could be left; give more hours"
        )
    if trainer.name == "slurm" and slurm.cluster == "local" and trainer.nodes > 1:
        raise UserError(f"trainer.nodes={trainer.nodes}: trainer.slurm.cluster=local has one node")


def _check_dial(config: Config) -> None:
    model = config.model
    divides("model.heads", model.heads, "model.width", model.width)
    outside = model.prelude + model.coda
    if config.unique_layers is None:
        looped, name = model.depth - outside, "model.depth"
        if outside:
            name = f"model.depth - model.prelude - model.coda = {model.depth} - {outside}"
        if looped < 1:
            raise UserError(
                f"model.depth={model.depth} leaves no layer to loop beside model.prelude="
                f"{model.prelude} and model.coda={model.coda}; choose fewer of them"
            )
        divides("loops", config.loops, name, looped, ", or set unique_layers")
        config.unique_layers = looped // config.loops
    # An explicit split sets the depth, so that equal networks have equal configurations.
    model.depth = outside + config.unique_layers * config.loops


def _check_combination(config: Config) -> None:
    model, objective = config.model, config.objective
    if model.block is None:
        model.block = objective.BLOCK
    one_of(config, "model.block", BLOCKS)
    if objective.INPUTS == "tokens" and model.block in MODULATED_BLOCKS:
        raise UserError(
            f"model.block={model.block} needs a condition vector, and objective={objective.name} has "
            "a class token instead; choose post_norm or pre_norm, or objective=diffusion"
        )
    if model.cond_width is None:
        model.cond_width = model.width
    if model.dropout is None:
        model.dropout = objective.DROPOUT
    if model.block not in MODULATED_BLOCKS and model.cond_width != model.width:
        raise UserError(
            f"model.cond_width={model.cond_width}: only blocks {' and '.join(MODULATED_BLOCKS)} take "
            f"a condition of its own width; leave it out with model.block={model.block}"
        )
    if objective.INPUTS == "images" and model.width % 4:
        raise UserError(f"model.width={model.width}: sine-cosine positions need a multiple of 4")
    if isinstance(objective, DiffusionConfig):
        one_of(config, "objective.prediction", ("v", "epsilon", "x"))
        within(config, -50, 50, "objective.bias objective.logsnr_min objective.logsnr_max")
        within(config, -50, 50, "objective.shift")
        low, high = objective.logsnr_min, objective.logsnr_max
        if low >= high:
            raise UserError(
                f"objective.logsnr_min={low} must be below objective.logsnr_max={high}; "
                "the default is -15 and 15"
            )
    if isinstance(objective, FlowConfig):
        within(config, -50, 50, "objective.time_mean")
        within(config, 0.01, 50, "objective.time_std objective.shift")
    if isinstance(objective, MaskedConfig):
        within(config, 0, 1, "objective.label_smoothing", open_end=True)
    names = [name for name, kind in Config.KINDS["sampler"].items() if kind is objective.SAMPLER]
    if config.sampler.name not in names:
        raise UserError(
            f"sampler.name={config.sampler.name} does not draw from objective={objective.name}; "
            f"choose {' or '.join(names)}"
        )
    assert isinstance(config.sampler, objective.SAMPLER)


def _check_supervision(config: Config) -> None:
    if config.loops == 1:
        # One exit has no students: every supervision is `final` (DESIGN, "One dial"). And the one loop
        # begins at the input, which nothing injects again.
        config.supervision = FinalConfig(name="final")
        config.model.inject_input = False
    supervision = config.supervision
    if isinstance(supervision, IlsdConfig):
        at_least(config, 1, "supervision.min_loops")
        at_least(config, 0, "supervision.distill")
        if supervision.min_loops >= config.loops:
            raise UserError(
                f"supervision.min_loops={supervision.min_loops} leaves no student below "
                f"loops={config.loops}; choose 1 to {config.loops - 1}"
            )
        one_of(config, "supervision.weight.shape", ("linear", "cosine", "constant"))
        within(config, 0, 1, "supervision.weight.start supervision.weight.end")
    if isinstance(supervision, DeepConfig):
        _check_deep(supervision, config.loops)
    if isinstance(supervision, RandomDepthConfig):
        _check_random_depth(config, supervision)


def _check_deep(supervision: DeepConfig, loops: int) -> None:
    inner = supervision.inner if isinstance(supervision.inner, list) else [supervision.inner]
    numbers = all(type(w) in (int, float) and 0 <= w < math.inf for w in inner)
    if not numbers or (isinstance(supervision.inner, list) and len(inner) != loops - 1):
        raise UserError(
            f"supervision.inner={supervision.inner}: give one weight of at least 0 for every exit "
            f"below the last, or a list of loops - 1 = {loops - 1}; the last exit weighs 1"
        )


def _check_random_depth(config: Config, supervision: RandomDepthConfig) -> None:
    one_of(config, "supervision.law", LAWS)
    at_least(config, 1, "supervision.min_loops supervision.max_loops")
    if supervision.max_loops is None:
        supervision.max_loops = config.loops
    low, high, mean = supervision.min_loops, supervision.max_loops, supervision.mean
    if not low <= high <= config.loops:
        raise UserError(
            f"supervision.min_loops={low} and supervision.max_loops={high}: give a range within "
            f"1 to loops={config.loops}"
        )
    if supervision.law == "uniform" and mean is not None:
        raise UserError(
            f"supervision.mean={mean}: the uniform law has its mean in the middle of the range; "
            "choose supervision.law=poisson"
        )
    if supervision.law == "poisson" and (mean is None or not low < mean < high):
        raise UserError(
            f"supervision.mean={mean}: supervision.law=poisson needs a mean between "
            f"supervision.min_loops={low} and supervision.max_loops={high}"
        )


def one_budget(budget: Any) -> None:
    """Raises UserError where two of the keys of a budget section are set."""
    given = {f"budget.{key}": budget[key] for key in BUDGETS if budget[key] is not None}
    if len(given) > 1:
        both = " and ".join(f"{key}={value}" for key, value in given.items())
        raise UserError(f"{both}: two budgets at once; give one of them")


def _check_budget(config: Config) -> None:
    """Whatever the budget was given in, images from here on: equal runs have equal configurations."""
    budget = config.budget
    one_budget(vars(budget))
    if budget.train_flops is not None:
        budget.images, budget.train_flops = images_for(config, budget.train_flops), None
    if budget.images is None:
        budget.images = DEFAULT_IMAGES


def images_for(config: Config, flops: float) -> int:
    """The images whose training costs these FLOPs, to the nearest whole batch."""
    if flops <= 0:
        raise UserError(f"budget.train_flops={flops:g}: must be above 0")
    step = train_flops(config) * config.batch_size
    steps = round(flops / step)
    if steps < 1:
        raise UserError(
            f"budget.train_flops={flops:g}: buys no step; one step of batch_size={config.batch_size} "
            f"takes {step:.3g} FLOPs"
        )
    return steps * config.batch_size


def _check_sampling(config: Config) -> None:
    sampler = config.sampler
    one_of(config, "sampler.guidance_schedule", ("constant", "linear"))
    if sampler.guidance != 1 and config.objective.label_dropout == 0:
        raise UserError(
            f"sampler.guidance={sampler.guidance} needs an unconditional model, and "
            "objective.label_dropout=0 trains none; leave guidance at 1"
        )
    if sampler.loops is not None and not is_loop_schedule(sampler.loops, sampler.steps):
        raise UserError(
            f"sampler.loops={sampler.loops}: give {SCHEDULE_FORMS}; sampler.steps={sampler.steps}"
        )
    if sampler.halting is not None and sampler.halting <= 0:
        raise UserError(
            f"sampler.halting={sampler.halting}: must be above 0, a relative update such as 0.05"
        )
    if isinstance(sampler, DiffusionSamplerConfig):
        bounded = config.data.kind == "pixels"
        if sampler.clip is None:
            sampler.clip = bounded
        if sampler.clip and not bounded:
            raise UserError(
                f"sampler.clip=true: keeps pixels in [-1, 1], and data={config.data.name} holds "
                "latents, which have no bounds; leave it out"
            )
    if isinstance(sampler, MaskedSamplerConfig):
        at_least(config, 0, "sampler.temperature_range sampler.confidence_noise")
        if sampler.temperature <= 0:
            raise UserError(f"sampler.temperature={sampler.temperature}: must be above 0, e.g. 0.5")


def _check_data(config: Config) -> None:
    data = config.data
    check_encoded_keys(data)
    divides("data.patch", data.patch, "data.size", data.size)
    divides("data.frame_patch", data.frame_patch, "data.frames", data.frames)
    holds = {"latents": "images", "tokens": "tokens"}.get(data.kind)
    if holds is None:
        one_of(config, "data.channels", (1, 3))
        if config.metrics.images is not None:
            raise UserError(
                f"metrics.images={config.metrics.images}: of encoded sets; the images of "
                f"data={data.name} are those of data.root"
            )
    elif holds != config.objective.INPUTS:
        raise UserError(
            f"data={data.name} holds {data.kind}, and objective={config.objective.name} corrupts "
            f"{config.objective.INPUTS}; choose another of the two"
        )
    check_source(data)
    if data.name in NATIVE and data.in_memory is not None:
        raise UserError(
            f"data.in_memory={str(data.in_memory).lower()}: of sets of files, and data={data.name} is kept "
            "as it is; leave it out"
        )
    check_metric_places(config.metrics)
    tokens = data.tokens
    if isinstance(config.sampler, MaskedSamplerConfig) and config.sampler.steps > tokens:
        raise UserError(
            f"sampler.steps={config.sampler.steps}: {tokens} tokens are unmasked in at most "
            f"{tokens} steps; choose 1 to {tokens}"
        )
