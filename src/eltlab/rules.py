"""Every rule across fields of a configuration, each with a message that says the mend."""

import math
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from eltlab.config import (
    MODULATED_BLOCKS,
    Config,
    DiffusionConfig,
    DiffusionSamplerConfig,
    FinalConfig,
    IlsdConfig,
    MaskedConfig,
    MaskedSamplerConfig,
    flatten,
)
from eltlab.errors import UserError
from eltlab.schedule import is_loop_count

# What each objective is built on when the user does not say. See docs/architecture.md.
DEFAULT_BLOCK = {"masked": "post_norm", "diffusion": "adaln"}
DEFAULT_DROPOUT = {"masked": 0.1, "diffusion": 0.0}  # MaskGIT's, DiT's
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")
MAX_PER_CLASS = 10_000  # samples a class, beyond which a distance no longer changes


def resolve(node: DictConfig) -> Config:
    """Checks every rule and fills in what follows from other keys. Raises UserError."""
    config = OmegaConf.to_object(node)
    assert isinstance(config, Config)
    _check_numbers(config)
    _check_dial(config)
    _check_combination(config)
    _check_supervision(config)
    _check_sampling(config)
    _check_data(config)
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
    at_least(config, 1, "trainer.log_every unique_layers model.cond_width")
    at_least(config, 2, "data.codebook")
    at_least(config, 0, "optim.lr optim.weight_decay optim.warmup_images optim.clip")
    at_least(config, 0, "trainer.checkpoint_seconds trainer.grids seed sampler.guidance")
    within(config, 0, 1, "model.dropout objective.label_dropout", open_end=True)
    within(config, 0, 1, "ema.decay", open_end=True)
    one_of(config, "optim.schedule", ("constant", "cosine"))
    one_of(config, "trainer.precision", ("auto", "32-true", "bf16-mixed"))
    one_of(config, "trainer.accelerator", ("auto", "cpu", "cuda"))
    one_of(config, "metrics.extractor", ("classifier",))
    betas = config.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas}: give two numbers in [0, 1), e.g. [0.9,0.99]")


def _check_dial(config: Config) -> None:
    model = config.model
    divides("model.heads", model.heads, "model.width", model.width)
    if config.unique_layers is None:
        divides("loops", config.loops, "model.depth", model.depth, ", or set unique_layers")
        config.unique_layers = model.depth // config.loops
    # An explicit split sets the depth, so that equal networks have equal configurations.
    model.depth = config.unique_layers * config.loops


def _check_combination(config: Config) -> None:
    model, objective = config.model, config.objective.name
    if model.block is None:
        model.block = DEFAULT_BLOCK[objective]
    one_of(config, "model.block", BLOCKS)
    if objective == "masked" and model.block in MODULATED_BLOCKS:
        raise UserError(
            f"model.block={model.block} needs a condition vector, and objective=masked has a class "
            "token instead; choose post_norm or pre_norm, or objective=diffusion"
        )
    if model.cond_width is None:
        model.cond_width = model.width
    if model.dropout is None:
        model.dropout = DEFAULT_DROPOUT[objective]
    if model.block not in MODULATED_BLOCKS and model.cond_width != model.width:
        raise UserError(
            f"model.cond_width={model.cond_width}: only blocks {' and '.join(MODULATED_BLOCKS)} take "
            f"a condition of its own width; leave it out with model.block={model.block}"
        )
    if isinstance(config.objective, DiffusionConfig):
        if model.width % 4:
            raise UserError(
                f"model.width={model.width}: sine-cosine positions in 2-D need a multiple of 4"
            )
        one_of(config, "objective.prediction", ("v", "epsilon", "x"))
        within(config, -50, 50, "objective.bias objective.logsnr_min objective.logsnr_max")
        within(config, -50, 50, "objective.shift")
        low, high = config.objective.logsnr_min, config.objective.logsnr_max
        if low >= high:
            raise UserError(
                f"objective.logsnr_min={low} must be below objective.logsnr_max={high}; "
                "the default is -15 and 15"
            )
    if isinstance(config.objective, MaskedConfig):
        within(config, 0, 1, "objective.label_smoothing", open_end=True)
    wanted = MaskedSamplerConfig if objective == "masked" else DiffusionSamplerConfig
    names = [name for name, kind in Config.KINDS["sampler"].items() if kind is wanted]
    if config.sampler.name not in names:
        raise UserError(
            f"sampler.name={config.sampler.name} does not draw from objective={objective}; "
            f"choose {' or '.join(names)}"
        )
    assert isinstance(config.sampler, wanted)


def _check_supervision(config: Config) -> None:
    if config.loops == 1:
        # One exit has no students: every supervision is `final` (DESIGN, "One dial").
        config.supervision = FinalConfig(name="final")
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


def _check_sampling(config: Config) -> None:
    sampler = config.sampler
    one_of(config, "sampler.guidance_schedule", ("constant", "linear"))
    if sampler.guidance != 1 and config.objective.label_dropout == 0:
        raise UserError(
            f"sampler.guidance={sampler.guidance} needs an unconditional model, and "
            "objective.label_dropout=0 trains none; leave guidance at 1"
        )
    loops = sampler.loops
    counts = loops if isinstance(loops, list) else [loops]
    if loops is not None and not (counts and all(map(is_loop_count, counts))):
        raise UserError(
            f"sampler.loops={loops}: give one loop count or a list of {sampler.steps}, one per "
            "step, each at least 1"
        )
    if isinstance(loops, list) and len(loops) != sampler.steps:
        raise UserError(
            f"sampler.loops has {len(loops)} counts for sampler.steps={sampler.steps}; "
            "give one per step"
        )
    if isinstance(sampler, MaskedSamplerConfig):
        at_least(config, 0, "sampler.temperature_range sampler.confidence_noise")
        if sampler.temperature <= 0:
            raise UserError(f"sampler.temperature={sampler.temperature}: must be above 0, e.g. 0.5")


def _check_data(config: Config) -> None:
    data = config.data
    divides("data.patch", data.patch, "data.size", data.size)
    if data.name == "digits" and (data.size, data.channels, data.classes) != (8, 1, 10):
        raise UserError(
            f"data.size={data.size} data.channels={data.channels} data.classes={data.classes}: the "
            "digits are 8x8 grey scans of 10 classes; leave these out"
        )
    tokens = data.tokens
    if config.objective.name == "masked" and config.sampler.steps > tokens:
        raise UserError(
            f"sampler.steps={config.sampler.steps}: {tokens} tokens are unmasked in at most "
            f"{tokens} steps; choose 1 to {tokens}"
        )


def check_samples(config: Config) -> None:
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


def at_least(config: Config, low: float, keys: str) -> None:
    for key, value in _values(config, keys):
        if value < low:
            raise UserError(f"{key}={value}: must be at least {low}")


def within(config: Config, low: float, high: float, keys: str, open_end: bool = False) -> None:
    for key, value in _values(config, keys):
        if not low <= value <= high or (open_end and value == high):
            raise UserError(f"{key}={value}: must lie in [{low}, {high}{')' if open_end else ']'}")


def one_of(config: Config, key: str, options: tuple[str, ...]) -> None:
    for _, value in _values(config, key):
        if value not in options:
            raise UserError(f"{key}={value}: choose one of {', '.join(options)}")


def _values(config: Config, keys: str) -> list[tuple[str, Any]]:
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
