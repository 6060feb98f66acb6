"""From a Config to the objects that run: data, tokenizer, objective and backbone."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eltlab.config import Config, DiffusionConfig, MaskedConfig
from eltlab.data.digits import load_digits
from eltlab.data.images import ImageSet, to_float
from eltlab.data.tokenizer import PatchCodebook, fit_codebook
from eltlab.errors import UserError
from eltlab.generation.diffusion import Diffusion
from eltlab.generation.masked import Masked
from eltlab.model.backbone import (
    PatchBackbone,
    TokenBackbone,
    initialise_backbone,
    looped_stack,
)
from eltlab.seeds import generator


@dataclass(frozen=True)
class Data:
    """The splits of a run, and the tokenizer that masked models see them through."""

    train: ImageSet
    test: ImageSet
    tokenizer: PatchCodebook | None

    def inputs(self) -> Tensor:
        """What the objective corrupts: token ids [N, T], or images [N, C, H, W] in [−1, 1]."""
        if self.tokenizer is not None:
            return self.tokenizer.encode(self.train.images)
        return to_float(self.train.images)

    @property
    def codebook(self) -> Tensor | None:
        return self.tokenizer.codes if self.tokenizer is not None else None

    def with_codebook(self, codes: Tensor | None) -> "Data":
        """The same splits seen through these codes: those that a run was trained on."""
        if self.tokenizer is None or codes is None:
            return self
        known = PatchCodebook(codes, self.tokenizer.channels, self.tokenizer.patch)
        return replace(self, tokenizer=known)


def build_splits(config: Config) -> tuple[ImageSet, ImageSet]:
    """(train, test) of the configuration's data."""
    return load_digits()


def build_data(config: Config) -> Data:
    train, test = build_splits(config)
    tokenizer = None
    if config.objective.name == "masked":
        tokenizer = fit_codebook(train, config.data.patch, config.data.codebook)
    return Data(train, test, tokenizer)


def build_objective(config: Config) -> Masked | Diffusion:
    objective = config.objective
    if isinstance(objective, MaskedConfig):
        return Masked(config.data.codebook, objective.label_smoothing)
    assert isinstance(objective, DiffusionConfig)
    return Diffusion(
        objective.prediction,
        objective.bias,
        objective.logsnr_min,
        objective.logsnr_max,
        objective.shift,
    )


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
        )
        backbone: nn.Module
        if config.objective.name == "masked":
            backbone = TokenBackbone(
                data.codebook, data.classes, data.tokens, model.width, model.dropout, stack
            )
        else:
            backbone = PatchBackbone(
                data.channels,
                data.size,
                data.patch,
                data.classes,
                model.width,
                model.cond_width,
                stack,
            )
    initialise_backbone(backbone, generator(config.seed, "weights"))
    return backbone


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
