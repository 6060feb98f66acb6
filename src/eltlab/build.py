"""From a Config to the objects that run: data, tokenizer, objective and backbone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from eltlab import devices
from eltlab.config import Config, DataConfig, DiffusionConfig, FlowConfig, MaskedConfig
from eltlab.data.batches import Batches, StreamedBatches
from eltlab.data.encoded import EncodedBatches, EncodedSplit, tokenizer_of_set
from eltlab.data.imagefiles import ImageFiles, Images
from eltlab.data.manifest import Manifest, opened
from eltlab.data.perframe import PerFrame
from eltlab.data.shards import check_set
from eltlab.data.sources import Splits, load_splits, source_splits
from eltlab.data.tokenizer import PatchCodebook, encode_set, fit_codebook
from eltlab.data.tokenizers import Tokenizer
from eltlab.errors import UserError
from eltlab.generation.diffusion import Diffusion
from eltlab.generation.flow import Flow
from eltlab.generation.masked import Masked
from eltlab.generation.objective import Objective
from eltlab.model.backbone import (
    Anatomy,
    PatchBackbone,
    TokenBackbone,
    initialise_backbone,
    looped_stack,
)
from eltlab.patches import Patches
from eltlab.seeds import WHOLE, Share, generator


@dataclass(frozen=True)
class Data:
    """The splits of a run, and the tokenizer that masked models see them through."""

    train: Images
    test: Images
    tokenizer: PatchCodebook | None

    def images(self, config: Config) -> Splits:
        """(train, test) that samples are held against."""
        return self.train, self.test

    @property
    def hash(self) -> str:
        """Of the training split: a run goes on with the images that it began with."""
        return self.train.origin

    def batches(
        self, config: Config, start: int, device: torch.device, share: Share = WHOLE
    ) -> Batches | StreamedBatches:
        """The batches of steps start…config.steps − 1, or a share of each. Token ids are encoded here,
        once."""
        train, flip = self.train, config.data.flip
        steps = (config.batch_size, config.seed, start, config.steps, flip)
        if self.tokenizer is not None:
            ids, mirrored = encode_set(self.tokenizer, train, flip)
            if mirrored is not None:
                mirrored = mirrored.to(device)
            return Batches(ids.to(device), train.labels.to(device), *steps, mirrored, share)
        if isinstance(train, ImageFiles):
            return StreamedBatches(train, *steps, device, share)
        return Batches(train.images.to(device), train.labels.to(device), *steps, share=share)

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Ids or uint8 images, and labels, of a seeded subset of the test split, for validation."""
        test = self.test.subset(min(most, len(self.test)))
        if self.tokenizer is not None:
            return self.tokenizer.encode(test.images), test.labels
        return test.images, test.labels

    @property
    def codebook(self) -> Tensor | None:
        return self.tokenizer.codes if self.tokenizer is not None else None

    def with_codebook(self, codes: Tensor | None) -> "Data":
        """The same splits seen through these codes: those that a run was trained on."""
        if self.tokenizer is None or codes is None:
            return self
        return replace(self, tokenizer=PatchCodebook(codes, self.tokenizer.patches))


@dataclass(frozen=True)
class EncodedData:
    """The splits of a run on latents or tokens, and the tokenizer that made them."""

    manifest: Manifest
    train: EncodedSplit
    test: EncodedSplit
    tokenizer: Tokenizer | PerFrame
    codebook: ClassVar[None] = None  # the tokenizer stays with the set, and out of checkpoints

    def images(self, config: Config) -> Splits:
        """(train, test) that samples are held against: what the set was encoded from."""
        return source_splits(config)

    @property
    def hash(self) -> str:
        return self.manifest.id

    def batches(
        self, config: Config, start: int, device: torch.device, share: Share = WHOLE
    ) -> EncodedBatches:
        """The batches of steps start…config.steps − 1, or a share of each."""
        data = config.data
        whole = data.in_memory
        if whole is None:
            whole = self.train.fits(device, data.flip, devices.local_world())
        steps = (config.batch_size, config.seed, start, config.steps, data.flip)
        return EncodedBatches(self.train, *steps, device, whole, data.workers, share)

    def held_out(self, most: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a seeded subset of the test split, for validation."""
        return self.test.subset(most)

    def with_codebook(self, codes: Tensor | None) -> "EncodedData":
        return self


def build_splits(config: Config) -> Splits:
    """(train, test) images that samples are held against. Raises UserError where they are not there,
    are others, or broken."""
    return load_splits(config.data) if config.data.kind == "pixels" else source_splits(config)


def build_data(config: Config) -> Data | EncodedData:
    """What a configuration trains on. Raises UserError where it is not there, is another, or broken."""
    if config.data.kind != "pixels":
        manifest = opened(config.data)
        check_set(manifest)
        train, test = EncodedSplit(manifest, "train"), EncodedSplit(manifest, "test")
        return EncodedData(manifest, train, test, tokenizer_of_set(manifest))
    return build_pixels(config)


def build_pixels(config: Config) -> Data:
    train, test = load_splits(config.data)
    tokenizer = None
    if config.objective.INPUTS == "tokens":
        tokenizer = fit_codebook(train, patches_of(config.data), config.data.codebook)
    return Data(train, test, tokenizer)


def build_objective(config: Config) -> Objective:
    """The objective of a configuration; one from a file of the user's builds itself."""
    objective = config.objective
    if objective.file is not None:
        return objective.build(config)
    match objective:
        case MaskedConfig():
            return Masked(config.data.codebook, objective.label_smoothing)
        case DiffusionConfig():
            return Diffusion(
                objective.prediction,
                objective.bias,
                objective.logsnr_min,
                objective.logsnr_max,
                objective.shift,
            )
        case FlowConfig():
            return Flow(objective.time_mean, objective.time_std, objective.shift)
    raise AssertionError(f"no objective {objective.name}")


def build_backbone(config: Config) -> nn.Module:
    """The network of a configuration, its initial weights a function of the seed."""
    model, data = config.model, config.data
    assert model.block and model.cond_width and config.unique_layers
    assert model.dropout is not None
    with torch.random.fork_rng(devices=[]):  # modules draw weights that are drawn anew below
        stack = looped_stack(
            model.block,
            config.unique_layers,
            model.width,
            model.heads,
            model.mlp_width,
            model.cond_width,
            model.dropout,
            config.loops,
            Anatomy(
                model.prelude,
                model.coda,
                model.loop_embedding,
                model.inject_input,
                model.residual_scale,
                model.exclusive_attention,
            ),
        )
        backbone: nn.Module
        if config.objective.INPUTS == "tokens":
            backbone = TokenBackbone(
                data.codebook, data.classes, data.tokens, model.width, model.dropout, stack
            )
        else:
            backbone = PatchBackbone(
                patches_of(data), data.classes, model.width, model.cond_width, stack
            )
    initialise_backbone(backbone, generator(config.seed, "weights"))
    return backbone


def patches_of(data: DataConfig) -> Patches:
    """How the backbone, or a codebook over pixels, cuts what the data are."""
    return Patches(data.shape, data.patch, data.frame_patch)


def choose_device(accelerator: str) -> torch.device:
    """The device of trainer.accelerator; auto: CUDA where there is one, else the CPU."""
    there = torch.cuda.is_available()
    if accelerator == "cuda" and not there:
        raise UserError("trainer.accelerator=cuda: torch finds no CUDA device here; choose cpu")
    return torch.device("cuda" if there and accelerator != "cpu" else "cpu")


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's name; auto: bf16 autocast on CUDA that has it, float32 elsewhere."""
    if precision != "auto":
        return precision
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"
