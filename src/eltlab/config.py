"""The configuration: dataclasses that Hydra validates against, and every rule across fields.

`compose` turns command-line overrides into a checked, fully resolved `Config`. Nothing here imports
torch: `--help` and mistakes answer at once.
"""

import difflib
import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eltlab.errors import UserError

# What each objective is built on when the user does not say. See docs/architecture.md.
DEFAULT_BLOCK = {"masked": "post_norm", "diffusion": "adaln"}
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")
# These need a condition vector (time and class); the masked objective has a class token instead.
MODULATED_BLOCKS = ("adaln", "film")
MAX_PER_CLASS = 10_000  # samples a class, beyond which a distance no longer changes


@dataclass
class ModelConfig:
    """The dial's fixed part: width, heads, MLP width and effective depth D (layers per pass)."""

    name: str = MISSING
    width: int = MISSING
    heads: int = MISSING
    mlp_width: int = MISSING
    depth: int = MISSING
    block: str | None = None  # None: the objective's default
    cond_width: int | None = None  # width of the time + class embedding; None: width
    dropout: float = 0.0


@dataclass
class ObjectiveConfig:
    name: str = MISSING
    label_dropout: float = 0.1


@dataclass
class MaskedConfig(ObjectiveConfig):
    label_smoothing: float = 0.1


@dataclass
class DiffusionConfig(ObjectiveConfig):
    prediction: str = "v"
    bias: float = 0.0
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift: float = 0.0


@dataclass
class WeightConfig:
    """λ over the run: the weight of the ground truth against the teacher (PAPER: linear, 1 to 0)."""

    shape: str = "linear"
    start: float = 1.0
    end: float = 0.0


@dataclass
class SupervisionConfig:
    name: str = MISSING


@dataclass
class FinalConfig(SupervisionConfig):
    pass


@dataclass
class IlsdConfig(SupervisionConfig):
    min_loops: int = 1
    distill: float = 1.0
    weight: WeightConfig = field(default_factory=WeightConfig)


@dataclass
class DataConfig:
    name: str = MISSING
    root: str | None = None
    size: int = MISSING  # pixels a side
    channels: int = MISSING
    classes: int = MISSING
    patch: int = MISSING  # pixels a side of what one token covers
    codebook: int = MISSING  # k-means codes over patches, for masked models


@dataclass
class SamplerConfig:
    name: str = MISSING
    steps: int = MISSING
    guidance: float = 1.0
    guidance_schedule: str = "constant"
    loops: Any = None  # None: the loop count asked for; else one count or a list, one per step


@dataclass
class MaskedSamplerConfig(SamplerConfig):
    temperature: float = 0.5
    temperature_range: float = 0.8
    confidence_noise: float = 4.5


@dataclass
class DiffusionSamplerConfig(SamplerConfig):
    clip: bool = True


@dataclass
class OptimConfig:
    lr: float = 1e-4
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    warmup_images: int = MISSING
    schedule: str = "constant"
    clip: float = 1.0


@dataclass
class EmaConfig:
    decay: float = 0.999


@dataclass
class TrainerConfig:
    accelerator: str = "auto"
    precision: str = "auto"
    compile: bool = False
    checkpoint_seconds: float = 60.0
    log_every: int = 25
    grids: int = 4


@dataclass
class MetricsConfig:
    extractor: str = "classifier"
    samples: int = 1000
    reference: int | None = None


@dataclass
class BudgetConfig:
    images: int = 192_000


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    supervision: SupervisionConfig = field(default_factory=SupervisionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    loops: int = 4
    unique_layers: int | None = None
    batch_size: int = 128
    seed: int = 0
    name: str | None = None
    runs_dir: str = "runs"
    evaluate: bool = True
    evaluate_loops: list[int] | None = None

    # The class of each node that has more than one, by the name its file gives.
    KINDS: ClassVar[dict[str, dict[str, type]]] = {
        "objective": {"masked": MaskedConfig, "diffusion": DiffusionConfig},
        "supervision": {"final": FinalConfig, "ilsd": IlsdConfig},
        "sampler": {
            "maskgit": MaskedSamplerConfig,
            "ddpm": DiffusionSamplerConfig,
            "ddim": DiffusionSamplerConfig,
        },
    }

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: the budget in whole batches, the last one never cut."""
        return math.ceil(self.budget.images / self.batch_size)


def folder(name: str) -> Path:
    """conf, sweeps or analysis: beside the package in the wheel, at the top of a checkout."""
    packaged = Path(__file__).parent / name
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / name


# --- from the command line to a Config ------------------------------------------------------------


def compose(overrides: list[str]) -> Config:
    """The checked configuration of these Hydra overrides, e.g. ``["model=elt_b", "loops=12"]``.

    Raises UserError for an unknown key or option, a value of the wrong type, or a broken rule.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    parsed = parse_overrides(overrides)
    groups = {path.name for path in folder("conf").iterdir() if path.is_dir()}
    choices = [f"{key}={value}" for key, value in parsed if key in groups]
    for key, value in parsed:
        if key in groups:
            _check_option(key, value)
    with initialize_config_dir(str(folder("conf").resolve()), version_base="1.3"):
        try:
            composed = hydra_compose("config", overrides=choices)
        except HydraException as error:
            raise UserError(f"{' '.join(choices)}: {_first_line(error)}") from error
    node = typed(composed)
    for key, value in parsed:
        if key not in groups:
            set_key(node, key, value)
    return resolve(node)


def parse_overrides(overrides: list[str]) -> list[tuple[str, Any]]:
    """(key, value) of each ``key=value``, by Hydra's grammar; sweeps and + ~ prefixes are refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UserError(f"{text!r} is not of the form key=value, e.g. loops=4") from error
        if override.is_sweep_override():
            raise UserError(
                f"{text}: one run takes one value; sweeps are for python -m eltlab.sweep"
            )
        if override.type is not OverrideType.CHANGE or override.package is not None:
            raise UserError(f"{text}: keys are fixed; write key=value without + or ~")
        parsed.append((override.key_or_group, override.value()))
    return parsed


def typed(composed: DictConfig) -> DictConfig:
    """The composed tree as a structured Config, so that every later assignment is validated."""
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    schema = Config()
    for key, kinds in Config.KINDS.items():
        name = plain.get(key, {}).get("name")
        if name not in kinds:
            raise UserError(f"{key}.name={name}: choose one of {', '.join(kinds)}")
        setattr(schema, key, kinds[name]())
    node = OmegaConf.structured(schema)
    for section, value in plain.items():
        for key, leaf in _leaves(str(section), value):
            set_key(node, key, leaf)
    return node


def set_key(node: DictConfig, key: str, value: Any) -> None:
    """Assigns one existing key; UserError names the nearest one, or what the type should be."""
    known = _known_keys(node)
    if key not in known:
        if any(name.startswith(key + ".") for name in known):
            raise UserError(f"{key} is a section: set one of its keys, {_section(known, key)}")
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        mend = f"did you mean {nearest[0]}?" if nearest else f"keys: {', '.join(known)}"
        raise UserError(f"unknown key {key}={value}: {mend}")
    try:
        OmegaConf.update(node, key, value)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={value}: {_first_line(error)}") from error


def load_config(path: Path) -> Config:
    """The Config that a run wrote. Raises UserError where the file is not one."""
    try:
        loaded = OmegaConf.load(path)
        assert isinstance(loaded, DictConfig)
        return resolve(typed(loaded))
    except (OSError, AssertionError, UserError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} is not the configuration of a run: {_first_line(error)}"
        ) from error


def flatten(config: Config) -> dict[str, Any]:
    """Dotted keys to plain values, in order."""
    return {k: v for section, value in asdict(config).items() for k, v in _leaves(section, value)}


def identity(config: Config) -> str:
    """Ten hex digits of everything that affects the trained weights (DESIGN decision 3).

    How a run is watched, drawn from and measured (sampler, metrics, evaluate, checkpoints) is left
    out: it can change without training again, and the rows say what it was.
    """
    sections = ("model", "objective", "supervision", "data", "optim", "ema", "budget")
    numbers = ("loops", "unique_layers", "batch_size", "seed")
    plain = asdict(config)
    affects = {key: plain[key] for key in sections + numbers}
    affects["precision"] = config.trainer.precision
    text = json.dumps(affects, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(f"{prefix}.{key}", inner)]
    return [(prefix, value)]


def _known_keys(node: DictConfig) -> list[str]:
    def walk(prefix: str, inner: Any) -> list[str]:
        if not isinstance(inner, DictConfig):
            return [prefix]
        return [
            leaf
            for key in inner
            for leaf in walk(f"{prefix}.{key!s}".lstrip("."), inner._get_node(key))
        ]

    return walk("", node)


def _section(known: list[str], prefix: str) -> str:
    return ", ".join(name for name in known if name.startswith(prefix + "."))


def _check_option(group: str, value: Any) -> None:
    options = sorted(
        str(path.relative_to(folder("conf") / group).with_suffix(""))
        for path in (folder("conf") / group).rglob("*.yaml")
    )
    if value not in options:
        nearest = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(f"{group}={value}: {hint}options: {', '.join(options) or 'none yet'}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# --- rules across fields --------------------------------------------------------------------------


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
    at_least(config, 1, "trainer.log_every unique_layers metrics.reference model.cond_width")
    at_least(config, 2, "data.codebook")
    at_least(config, 0, "optim.lr optim.weight_decay optim.warmup_images optim.clip")
    at_least(config, 0, "trainer.checkpoint_seconds trainer.grids seed sampler.guidance")
    within(config, 0, 1, "model.dropout objective.label_dropout", open_end=True)
    within(config, 0, 1, "ema.decay", open_end=True)
    one_of(config, "optim.schedule", ("constant", "cosine"))
    one_of(config, "trainer.precision", ("auto", "32-true", "bf16-mixed"))
    one_of(config, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda", "mps"))
    one_of(config, "metrics.extractor", ("classifier",))
    betas = config.optim.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optim.betas={betas}: give two numbers in [0, 1), e.g. [0.9,0.99]")


def _check_dial(config: Config) -> None:
    model = config.model
    if model.width % model.heads:
        raise UserError(
            f"model.heads={model.heads} does not divide model.width={model.width}; "
            f"choose one of {divisors(model.width)}"
        )
    if config.unique_layers is None:
        if model.depth % config.loops:
            raise UserError(
                f"loops={config.loops} does not divide model.depth={model.depth}; "
                f"choose one of {divisors(model.depth)}, or set unique_layers"
            )
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
    loops = sampler.loops
    if loops is not None:
        if hasattr(loops, "__iter__") and not isinstance(loops, str):
            loops = sampler.loops = list(loops)
        counts = loops if isinstance(loops, list) else [loops]
        if not counts or not all(isinstance(n, int) and n >= 1 for n in counts):
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
    if data.size % data.patch:
        raise UserError(
            f"data.patch={data.patch} does not divide data.size={data.size}; "
            f"choose one of {divisors(data.size)}"
        )
    if data.name == "digits" and (data.size, data.channels, data.classes) != (8, 1, 10):
        raise UserError(
            f"data.size={data.size} data.channels={data.channels} data.classes={data.classes}: the "
            "digits are 8x8 grey scans of 10 classes; leave these out"
        )
    tokens = (data.size // data.patch) ** 2
    if config.objective.name == "masked" and config.sampler.steps > tokens:
        raise UserError(
            f"sampler.steps={config.sampler.steps}: {tokens} tokens are unmasked in at most "
            f"{tokens} steps; choose 1 to {tokens}"
        )


def check_samples(config: Config) -> None:
    """Raises UserError where metrics.samples is too few or too many for a distance."""
    samples, classes = config.metrics.samples, config.data.classes
    if samples < 2 * classes:
        raise UserError(f"metrics.samples={samples}: give at least two a class, {2 * classes}")
    if samples > MAX_PER_CLASS * classes:
        raise UserError(
            f"metrics.samples={samples}: {samples // classes:,} samples of each of {classes} classes "
            f"tell no more than {MAX_PER_CLASS:,}; give at most {MAX_PER_CLASS * classes:,}"
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


def divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, the form that `load_config` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
