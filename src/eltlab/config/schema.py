"""The configuration: every key with its default, its sentence, range and choices. Hydra validates the types,
`keys.check_keys` the ranges and choices, `rules.resolve` what concerns several keys at once."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from omegaconf import MISSING

from eltlab.config.depth_distribution import DepthDistribution, depth_distribution
from eltlab.config.keys import key

DEFAULT_IMAGES = 192_000  # the budget of a run that sets none
DEFAULT_REFERENCE = 10_000  # images of the reference split that samples are compared with one by one

ACCELERATORS = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "32-true", "bf16-mixed")
BLOCKS = ("post_norm", "pre_norm", "adaln", "film")

# Blocks that take a condition vector (time and class). The other blocks get it as a token in front.
MODULATED_BLOCKS = ("adaln", "film")


@dataclass
class ModelConfig:
    """The size of a network, and additions to the plain loop from related work, which are off by default."""

    name: str = MISSING
    width: int = key(MISSING, "features per token", low=1)
    heads: int = key(MISSING, "attention heads; they divide the width", low=1)
    mlp_width: int = key(MISSING, "hidden features of the MLP", low=1)
    depth: int = key(MISSING, "effective depth D, the layers that one pass runs", low=1)
    block: str | None = key(None, "kind of layer; null: the objective's own", choices=BLOCKS)
    cond_width: int | None = key(None, "width of the time and class embedding; null: width", low=1)
    dropout: float | None = key(None, "dropout; null: 0.1 if masked, else 0", low=0, below=1)
    prelude: int = key(0, "layers before the loop, run once per pass; counted in depth", low=0)
    coda: int = key(0, "layers after the loop, run once per exit; counted in depth", low=0)
    loop_embedding: bool = key(False, "add a learned vector per loop to every token")
    inject_input: bool = key(False, "add a linear map of the loop's input at every later loop")
    residual_scale: float | None = key(
        None, "λ: scale the residual branches of looped layers by λ/(N·√L); null: no scale", above=0
    )
    exclusive_attention: bool = key(False, "remove each token's own value from its attention output")
    final_norm: bool | None = key(None, "set by resolve: a norm before the masked head", internal=True)


@dataclass
class SamplerConfig:
    name: str = key(MISSING, "maskgit; ddpm or ddim; euler or heun (by objective)")
    steps: int = key(MISSING, "sampling steps", low=1)
    guidance: float = key(1.0, "scale of classifier-free guidance; 1: off, half the cost", low=0)
    guidance_schedule: str = key(
        "constant", "linear: rises from 1 to guidance", choices=("constant", "linear")
    )
    loops: Any = key(None, "a count, a ramp such as 4to1, or one count per step; null: loops")
    halting: float | None = key(None, "stop looping at a relative update below this", above=0)
    batch: int = key(128, "samples drawn at a time per device", low=1)

    @property
    def stages(self) -> list[int]:
        """Network evaluations of each step, without the extra ones of guidance."""
        return [1] * self.steps


@dataclass
class MaskedSamplerConfig(SamplerConfig):
    temperature: float = key(0.5, "sampling temperature of tokens in the last step", above=0)
    temperature_range: float = key(0.8, "how much higher the temperature is at the start", low=0)
    confidence_noise: float = key(4.5, "Gumbel noise on the confidence that picks tokens", low=0)


@dataclass
class DiffusionSamplerConfig(SamplerConfig):
    clip: bool | None = key(None, "keep predictions in [-1, 1]; null: true for pixels")


@dataclass
class FlowSamplerConfig(SamplerConfig):
    @property
    def stages(self) -> list[int]:
        twice = self.name == "heun"
        return [1 + twice] * (self.steps - 1) + [1]


@dataclass
class ObjectiveConfig:
    """The class variables: inputs, defaults of model.block and model.dropout, and the kind of sampler."""

    INPUTS: ClassVar[str] = "images"  # what it corrupts: images, or the tokens of a codebook
    BLOCK: ClassVar[str] = "adaln"
    DROPOUT: ClassVar[float] = 0.0
    SAMPLER: ClassVar[type[SamplerConfig]] = DiffusionSamplerConfig

    name: str = MISSING
    label_dropout: float = key(0.1, "share of labels dropped, for guidance", low=0, below=1)
    file: str | None = None  # the file of an extension (docs/extending.md)
    source: str | None = None  # the hash of that file

    def build(self, config: "Config") -> Any:
        """The objective of an extension, with the methods of `Objective` (generation/objective.py)."""
        raise NotImplementedError(f"{type(self).__name__} has no method build")


@dataclass
class MaskedConfig(ObjectiveConfig):
    INPUTS: ClassVar[str] = "tokens"
    BLOCK: ClassVar[str] = "post_norm"
    DROPOUT: ClassVar[float] = 0.1  # MaskGIT's
    SAMPLER: ClassVar[type[SamplerConfig]] = MaskedSamplerConfig

    label_smoothing: float = key(0.1, "label smoothing of the cross-entropy", low=0, below=1)


@dataclass
class DiffusionConfig(ObjectiveConfig):
    prediction: str = key("v", "what the network predicts", choices=("v", "epsilon", "x"))
    bias: float = key(0.0, "bias b of the sigmoid weighting", low=-50, high=50)
    logsnr_min: float = key(-15.0, "log-SNR of pure noise", low=-50, high=50)
    logsnr_max: float = key(15.0, "log-SNR of clean data", low=-50, high=50)
    shift: float = key(0.0, "added to log-SNR: 2·ln(reference size / size)", low=-50, high=50)


@dataclass
class FlowConfig(ObjectiveConfig):
    SAMPLER: ClassVar[type[SamplerConfig]] = FlowSamplerConfig

    time_mean: float = key(0.0, "mean of logit(t), which is normal", low=-50, high=50)
    time_std: float = key(1.0, "standard deviation of logit(t)", low=0.01, high=50)
    shift: float = key(1.0, "shift of t: √(size / reference size)", low=0.01, high=50)


@dataclass
class WeightConfig:
    """λ over the run: the weight of the ground truth against the teacher (the paper: linear, 1 to 0)."""

    shape: str = key("linear", "how λ goes from start to end", choices=("linear", "cosine", "constant"))
    start: float = key(1.0, "λ at the first step, and throughout if constant", low=0, high=1)
    end: float = key(0.0, "λ at the last step", low=0, high=1)


class Spent(NamedTuple):
    """What one training pass of a run computes."""

    depths: DepthDistribution  # share of passes at each loop count; {4: 1.0} if all run four loops
    exits_read: int  # exits that the head reads in a pass
    distilled: bool = False  # whether the student's prediction is compared with the teacher's


@dataclass
class SupervisionConfig:
    name: str = MISSING
    file: str | None = None  # of an extension (docs/extending.md)
    source: str | None = None  # the hash of that file

    def spent(self, loops: int) -> Spent:
        """What a training pass of a model with L loops computes. By default: L loops, read once."""
        return Spent({loops: 1.0}, 1)

    def build(self, loops: int, seed: int, steps: int) -> Any:
        """The supervision of an extension, with `exits` and `losses` (training/supervision.py)."""
        raise NotImplementedError(f"{type(self).__name__} has no method build")


@dataclass
class FinalConfig(SupervisionConfig):
    pass


@dataclass
class IlsdConfig(SupervisionConfig):
    min_loops: int = key(1, "smallest loop count of the student", low=1)
    distill: float = key(1.0, "weight of the distillation term", low=0)
    weight: WeightConfig = field(default_factory=WeightConfig)

    def spent(self, loops: int) -> Spent:
        return Spent({loops: 1.0}, 2, distilled=True)


@dataclass
class DeepConfig(SupervisionConfig):
    inner: Any = key(1.0, "weight of the exits below the last, or a list of them; the last has 1")

    def spent(self, loops: int) -> Spent:
        return Spent({loops: 1.0}, loops)


@dataclass
class RandomDepthConfig(SupervisionConfig):
    law: str = key("uniform", "distribution of the loop count", choices=("uniform", "poisson"))
    mean: float | None = key(None, "mean loop count; required by law=poisson, and only there")
    min_loops: int = key(1, "smallest loop count", low=1)
    max_loops: int | None = key(None, "largest loop count; null: loops", low=1)

    def spent(self, loops: int) -> Spent:
        return Spent(self.depths(loops), 1)

    def depths(self, loops: int) -> DepthDistribution:
        """The share of steps at each loop count."""
        return depth_distribution(self.law, self.min_loops, self.max_loops or loops, self.mean)


@dataclass
class DataConfig:
    """Keys with `since` were added when runs existed: at their defaults they change no run's id."""

    name: str = MISSING
    root: str | None = key(None, "folder, zip or tar of the set; fit says what it expects")
    frames: int = key(1, "frames of a clip; 1: images", low=1, from_data=True)
    stride: int = key(1, "clips: take every stride-th frame of a video", low=1, since="0.1")
    split: int = key(1, "clips: official split of UCF-101", choices=(1, 2, 3), since="0.1")
    size: int = key(MISSING, "pixels or latent positions per side", low=1, from_data=True)
    channels: int = key(MISSING, "1 for grey, 3 for colour", low=1, from_data=True)
    classes: int = key(MISSING, "0: as many as data.root has folders", low=2, from_data=True)
    kind: str = key("pixels", "pixels, latents or tokens", since="0.1")
    factor: int = key(1, "pixels per side of a latent", low=1, from_data=True, since="0.1")
    encoding: str | None = key(None, "id of the encoded set; null: any", since="0.1")
    patch: int = key(MISSING, "pixels per side covered by one token", low=1, from_data=True)
    frame_patch: int = key(1, "frames covered by one token", low=1, since="0.1")
    codebook: int = key(MISSING, "masked: size K of the codebook", low=2, from_data=True)
    flip: bool = key(False, "mirror half of the training images horizontally")
    tuning: bool = key(False, "train on nine tenths of the training split, measure losses on the rest")
    workers: int = key(2, "processes that decode or read examples", low=0)
    in_memory: bool | None = key(None, "decode into memory; null: if it fits into a quarter of it")

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
        """[C, H, W] of an image or a latent, [F, C, H, W] of a clip."""
        image = (self.channels, self.size, self.size)
        return image if self.frames == 1 else (self.frames, *image)

    @property
    def pixels(self) -> int:
        """Pixels per side of the images, also if they are encoded."""
        return self.size * self.factor


@dataclass
class TokenizerConfig:
    """Images ↔ latents or tokens; from files, from the Hugging Face hub, or fitted (kmeans)."""

    name: str = MISSING
    weights: str | None = key(None, "a file, a folder, or a hub id such as madebyollin/taesd")
    subfolder: str | None = key(None, "subfolder of the weights")
    base: str | None = key(None, "kmeans: the continuous tokenizer of these weights")
    codes: int | None = key(None, "kmeans: size K of the codebook", low=2)


@dataclass
class OptimConfig:
    lr: float = key(1e-4, "peak learning rate of AdamW", low=0)
    betas: list[float] = key(MISSING, "β₁ and β₂ of AdamW", low=0, below=1)
    weight_decay: float = key(MISSING, "weight decay of AdamW", low=0)
    warmup: float = key(MISSING, "share of the run over which the rate rises linearly", low=0, below=1)
    schedule: str = key("constant", "learning rate after warm-up", choices=("constant", "cosine"))
    clip: float = key(1.0, "largest norm of the gradient; 0: no clipping", low=0)


@dataclass
class EmaConfig:
    """Averages of the weights with EDM2's power function: their lengths are shares of the run."""

    lengths: list[float] = key(
        lambda: [0.05, 0.1], "lengths σ_rel of the averages that training keeps", above=0, high=0.28
    )
    length: float | None = key(None, "the average to sample and measure; null: the first given of lengths")


@dataclass
class SlurmConfig:
    """What a job of trainer=slurm requests, besides nodes and devices."""

    cluster: str = key("slurm", "local: try it on this machine", choices=("slurm", "local"))
    partition: str | None = key(None, "partition of the job")
    account: str | None = key(None, "account of the job")
    qos: str | None = key(None, "quality of service of the job")
    constraint: str | None = key(None, "required features of the nodes")
    hours: float = key(24.0, "time limit; the job is queued again until the run is finished")
    cpus_per_task: int = key(4, "CPU cores per device", low=1)
    memory: float | None = key(None, "GB per node; null: the partition's default", low=1)
    signal_seconds: int = key(90, "seconds before the time limit at which the run stops", low=1)


@dataclass
class TrainerConfig:
    name: str = key("local", "slurm: train in a job", choices=("local", "slurm"))
    accelerator: str = key("auto", "auto: CUDA if available", choices=ACCELERATORS)
    devices: int = key(1, "devices per node, one process each", low=1)
    nodes: int = key(1, "nodes", low=1)
    strategy: str = key("auto", "auto: ddp for several devices", choices=("auto", "ddp", "fsdp"))
    accumulate: int = key(1, "micro-batches per step: less memory, the same step", low=1)
    precision: str = key("auto", "auto: bf16-mixed on CUDA, else 32-true", choices=PRECISIONS)
    compile: bool = key(False, "compile the blocks with torch.compile")
    recompute: bool = key(False, "recompute blocks in the backward pass: less memory, more FLOPs")
    checkpoint_seconds: float = key(60.0, "seconds between checkpoints", low=0)
    log_every: int = key(25, "steps between rows of metrics.csv", low=1)
    grids: int = key(4, "how often sample grids are drawn during the run", low=0)
    validations: int = key(8, "how often the validation loss is measured during the run", low=0)
    wandb: bool = key(False, "also log to Weights & Biases")
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class MetricsConfig:
    extractor: str | None = key(None, "inception, i3d or classifier; null: by frames and size")
    samples: int = key(1000, "samples drawn per loop count", low=1)
    split: str = key("train", "the split that samples are compared with", choices=("train", "test"))
    statistics: str | None = key(
        None,
        "mean and covariance of the reference: null, the whole split; reference, metrics.reference images; "
        "or an .npz file with mu and sigma",
    )
    reference: int | None = key(
        None, f"images of the split for KID, precision, recall, kd; null: at most {DEFAULT_REFERENCE:,}"
    )
    images: str | None = key(None, "current folder of the images of an encoded set")
    weights: str | None = key(None, "weights of Inception or I3D: a file, or download")


@dataclass
class BudgetConfig:
    """How long a run trains; set at most one key. Resolved, it is in images; see Config.images."""

    images: int | None = key(None, f"in whole batches; null: {DEFAULT_IMAGES:,}", low=1)
    train_flops: float | None = key(None, "training FLOPs, in place of images", above=0)
    match: Any = key(None, "same training FLOPs as a run's folder, twin, or keys such as {loops:1}")


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
    loops: int = key(4, "loop count L of the last exit; 1: the unique-layer model", low=1)
    unique_layers: int | None = key(None, "unique layers N; null: model.depth / loops", low=1)
    batch_size: int = key(128, "images per step, over all devices and micro-batches", low=1)
    seed: int = key(0, "seed of weights, data order, noise and sampling", low=0)
    name: str | None = key(None, "folder in runs_dir; null: data-objective-model-NxL-supervision-…")
    runs_dir: str = key("runs", "folder of all runs")
    evaluate: bool = key(True, "measure the run when training ends")
    evaluate_loops: list[Any] | None = key(
        None,
        "loop counts and ramps (4to1) to measure; null: 1 to loops, above 8 the powers of two and loops",
    )
    study: str | None = key(None, "set by a sweep, for the rows", internal=True)
    trial: int | None = key(None, "set by a sweep, for the rows", internal=True)
    tuned: str | None = key(None, "set by a sweep: the values that it chose, as JSON", internal=True)
    tuned_on: str | None = key(None, "set by a sweep: what it chose them on", internal=True)

    # The classes of the sections that have several, by the name in the chosen file of conf/.
    KINDS: ClassVar[dict[str, dict[str, type]]] = {
        "objective": {"masked": MaskedConfig, "diffusion": DiffusionConfig, "flow": FlowConfig},
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
        """Optimizer steps of the run: the budget rounded up to whole batches."""
        assert self.budget.images is not None  # set by resolve
        return math.ceil(self.budget.images / self.batch_size)

    @property
    def images(self) -> int:
        """Training images of the run, in whole batches."""
        return self.steps * self.batch_size

    @property
    def world(self) -> int:
        """Devices of the run, over all nodes."""
        return self.trainer.devices * self.trainer.nodes

    @property
    def micro_batch_size(self) -> int:
        """Images of one micro-batch on one device."""
        return self.batch_size // (self.world * self.trainer.accumulate)


@dataclass
class EncodeConfig:
    """The keys of `python -m eltlab.encode`."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    out: str = key(MISSING, "folder of the encoded set (required)")
    flips: bool = key(True, "also encode each image mirrored, for data.flip=true in training")
    shard: int = key(1024, "images per file", low=1)
    batch: int | None = key(None, "images per pass; null: 2 on a CPU, else 64", low=1)
    accelerator: str = key("auto", "auto: CUDA if available", choices=ACCELERATORS)
    evaluate: bool = key(True, "measure what the tokenizer loses")
    verify: bool = key(False, "read every shard back and check its hash")

    KINDS: ClassVar[dict[str, dict[str, type]]] = {}
