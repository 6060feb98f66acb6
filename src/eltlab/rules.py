"""Every rule across fields of a configuration, each with a message that says the mend."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from eltlab.compute import train_flops
from eltlab.config import (
    DEFAULT_IMAGES,
    MODULATED_BLOCKS,
    Config,
    DataConfig,
    DeepConfig,
    DiffusionConfig,
    DiffusionSamplerConfig,
    EncodeConfig,
    FinalConfig,
    FlowConfig,
    IlsdConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    MetricsConfig,
    RandomDepthConfig,
    flatten,
)
from eltlab.data.folders import class_names
from eltlab.data.manifest import fill_from_manifest
from eltlab.data.tokenizer_names import check as check_tokenizer
from eltlab.data.videofolders import video_classes
from eltlab.errors import UserError
from eltlab.laws import LAWS
from eltlab.schedule import SCHEDULE_FORMS, is_loop_schedule

# (size, channels, classes) of the sets that are what they are; data=images and data=clips take any.
NATIVE = {
    "digits": (8, 1, 10),
    "fashion_mnist": (28, 1, 10),
    "cifar10": (32, 3, 10),
    "sprites": (64, 3, 9),
}
SPRITES_FRAMES = 8
CLIPS = ("sprites", "clips")  # sets of clips; the others are of images
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")
MAX_PER_CLASS = 10_000  # samples a class, beyond which a distance no longer changes
BUDGETS = ("images", "train_flops", "match")
INCEPTION_FROM = 32  # pixels a side: below, Inception sees little but its own enlargement


def resolve(node: DictConfig) -> Config:
    """Checks every rule and fills in what follows from other keys. Raises UserError."""
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:  # a field of an extension without a default
        raise UserError(f"{error.full_key}: has no default; give {error.full_key}=VALUE") from error
    assert isinstance(config, Config)
    fill_data(config.data)
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


def check_shares(config: Config) -> None:
    """Raises UserError where a batch does not go evenly over the devices and pieces."""
    trainer, batch = config.trainer, config.batch_size
    shares = config.world * trainer.accumulate
    if batch % shares:
        divisors = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes} trainer.accumulate="
            f"{trainer.accumulate}: their product {shares} does not divide batch_size={batch}, the batch "
            f"of all devices and pieces together; make it one of {divisors}"
        )


def one_device(config: Config, what: str) -> None:
    """Raises UserError for a configuration of several devices where only one is used."""
    trainer = config.trainer
    if config.world > 1:
        raise UserError(
            f"trainer.devices={trainer.devices} trainer.nodes={trainer.nodes}: {what}; leave both out"
        )


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


def fill_data(data: DataConfig) -> None:
    """Fills in what data.root says of itself. Raises UserError."""
    check_clips(data)
    if data.classes == 0 and data.name == "images":
        data.classes = len(class_names(data.root))
    if data.classes == 0 and data.name == "clips":
        data.classes = len(video_classes(data.root, data.split))
    # A configuration that was filled in before says so by its encoding, and needs no set in its place.
    blank = 0 in (data.size, data.classes)
    if data.kind != "pixels" and (blank or data.encoding is None):
        if data.root is not None:
            fill_from_manifest(data)
        elif blank:
            raise UserError(
                f"data.root is missing: data={data.name} needs the folder that python -m eltlab.encode wrote"
            )


def check_clips(data: DataConfig) -> None:
    """Raises UserError where a key of clips has no meaning, or another set is given one."""
    if data.kind == "pixels" and (data.frames > 1) != (data.name in CLIPS):
        raise UserError(
            f"data.frames={data.frames}: data={data.name} holds "
            + ("clips; give at least 2" if data.name in CLIPS else "images; leave it out")
        )
    if data.name == "sprites" and data.frames != SPRITES_FRAMES:
        raise UserError(
            f"data.frames={data.frames}: the clips of sprites have {SPRITES_FRAMES}; leave it out"
        )
    if data.name == "clips":
        if data.stride < 1:
            raise UserError(f"data.stride={data.stride}: must be at least 1")
        if data.split not in (1, 2, 3):
            raise UserError(f"data.split={data.split}: choose one of 1, 2, 3")
        return
    for key in ("stride", "split"):
        if getattr(data, key) != 1:
            raise UserError(
                f"data.{key}={getattr(data, key)}: of clips, and this is data={data.name}; leave it out, "
                "or choose data=clips"
            )


def choose_extractor(metrics: MetricsConfig, data: DataConfig) -> None:
    """Fills in metrics.extractor where it is left out. Raises UserError for one that does not fit."""
    of_clips = data.frames > 1
    if metrics.extractor is None and of_clips:
        metrics.extractor = "i3d"
    if metrics.extractor is None:
        metrics.extractor = "classifier" if data.pixels < INCEPTION_FROM else "inception"
    fitting = ("classifier", "i3d" if of_clips else "inception")
    if metrics.extractor not in fitting:
        raise UserError(
            f"metrics.extractor={metrics.extractor}: data={data.name} holds "
            f"{'clips' if of_clips else 'images'}; choose one of {', '.join(fitting)}"
        )


def check_encoded_keys(data: DataConfig) -> None:
    """Raises UserError where a key of encoded sets says something of images, or one of latents of tokens:
    it would give the run another name and change nothing else."""
    if data.kind == "pixels" and data.encoding is not None:
        raise UserError(
            f"data.encoding={data.encoding}: of encoded sets, and data={data.name} is of images; leave it out"
        )
    if data.kind != "latents" and data.factor != 1:
        raise UserError(
            f"data.factor={data.factor}: of latents, and data={data.name} is of {data.kind}; leave it out"
        )


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
    check_metric_places(config.metrics)
    tokens = data.tokens
    if isinstance(config.sampler, MaskedSamplerConfig) and config.sampler.steps > tokens:
        raise UserError(
            f"sampler.steps={config.sampler.steps}: {tokens} tokens are unmasked in at most "
            f"{tokens} steps; choose 1 to {tokens}"
        )


def check_source(data: DataConfig) -> None:
    """Raises UserError where a set is asked to be what it is not, or its place is missing."""
    native = NATIVE.get(data.name)
    if native is not None and (data.size, data.channels, data.classes) != native:
        size, channels, classes = native
        raise UserError(
            f"data.size={data.size} data.channels={data.channels} data.classes={data.classes}: "
            f"{data.name} is {size}x{size}, {channels} channels, {classes} classes; leave these out"
            f"{'' if data.name in CLIPS else ', or use data=images, which resizes'}"
        )
    if data.name == "images" and data.root is None:
        raise UserError(
            "data.root is missing: data=images needs a folder or a zip of class folders"
        )
    if data.name == "digits" and data.root is not None:
        raise UserError(f"data.root={data.root}: the digits come with scikit-learn; leave it out")
    # Absolute, so that a run can be measured from another folder.
    if data.root is not None:
        data.root = str(Path(data.root).expanduser().resolve())


def check_metric_places(metrics: MetricsConfig) -> None:
    if metrics.weights is not None and metrics.extractor == "classifier":
        raise UserError(
            f"metrics.weights={metrics.weights}: weights of Inception or I3D, and metrics.extractor is "
            "classifier, which trains its own; leave it out"
        )
    if metrics.weights not in (None, "download"):
        metrics.weights = str(Path(str(metrics.weights)).expanduser().resolve())
    if metrics.images is not None:
        metrics.images = str(Path(metrics.images).expanduser().resolve())


def check_samples(config: Config | EncodeConfig) -> None:
    """Raises UserError where there are too few images for a distance, or more than it can use."""
    classes = config.data.classes
    for key, count in _values(config, "metrics.samples metrics.reference"):
        if count < 2 * classes:
            raise UserError(f"{key}={count}: give at least two a class, {2 * classes}")
        if count > MAX_PER_CLASS * classes:
            raise UserError(
                f"{key}={count}: {count // classes:,} images of each of {classes} classes tell no "
                f"more than {MAX_PER_CLASS:,}; give at most {MAX_PER_CLASS * classes:,}"
            )


# What encode has no use for, set by a user; the files of conf/data say some of it for training.
IDLE = {
    "data.flip": "training mirrors images; flips=true encodes each image mirrored as well",
    "data.codebook": "codes over patches of pixels; tokenizer=kmeans has tokenizer.codes",
    "data.patch": "a tokenizer has positions of its own",
    "data.frame_patch": "a tokenizer sees each frame on its own",
    "data.factor": "a tokenizer has positions of its own",
    "data.encoding": "the id of a set that is encoded already",
    "metrics.images": "of encoded sets; the images to encode are those of data.root",
}


def refuse_idle(keys: Iterable[str]) -> None:
    """Raises UserError for a key that encode would pass over."""
    for key in keys:
        if key in IDLE:
            raise UserError(f"{key}: of no use to encode ({IDLE[key]}); leave it out")


def resolve_encode(node: DictConfig) -> EncodeConfig:
    """`resolve` for the keys of encode."""
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: is missing; give {error.full_key}=VALUE") from error
    assert isinstance(config, EncodeConfig)
    if config.data.kind != "pixels":
        raise UserError(f"data={config.data.name}: encoded already; choose data=images")
    check_tokenizer(config.tokenizer)
    fill_data(config.data)
    choose_extractor(config.metrics, config.data)
    at_least(config, 1, "data.size shard batch metrics.samples")
    at_least(config, 0, "data.workers")
    at_least(config, 2, "data.classes")
    if config.data.channels != 3:
        raise UserError(
            f"data.channels={config.data.channels}: tokenizers see and draw colour; give "
            "data.channels=3, which decodes grey images as grey colours (data=images)"
        )
    one_of(config, "accelerator", ("auto", "cpu", "cuda"))
    check_source(config.data)
    check_metric_places(config.metrics)
    check_samples(config)
    return config


def at_least(config: Any, low: float, keys: str) -> None:
    for key, value in _values(config, keys):
        if value < low:
            raise UserError(f"{key}={value}: must be at least {low}")


def within(config: Any, low: float, high: float, keys: str, open_end: bool = False) -> None:
    for key, value in _values(config, keys):
        if not low <= value <= high or (open_end and value == high):
            raise UserError(f"{key}={value}: must lie in [{low}, {high}{')' if open_end else ']'}")


def one_of(config: Any, key: str, options: tuple[Any, ...]) -> None:
    for _, value in _values(config, key):
        if value not in options:
            raise UserError(f"{key}={value}: choose one of {', '.join(map(str, options))}")


def _values(config: Any, keys: str) -> list[tuple[str, Any]]:
    """The set values behind space-separated dotted keys."""
    found = []
    for key in keys.split():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if value is not None:
            found.append((key, value))
    return found


def divides(key: str, part: int, whole_key: str, whole: int, otherwise: str = "") -> None:
    if whole % part:
        divisors = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
        raise UserError(
            f"{key}={part} does not divide {whole_key}={whole}; choose one of {divisors}{otherwise}"
        )
