"""From a Config to the objects that run: data, tokenizer, objective and backbone."""

from dataclasses import dataclass

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


def build_data(config: Config) -> Data:
    train, test = load_digits()
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
    assert model.block is not None and model.cond_width is not None and config.unique_layers
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
            tokens = (data.size // data.patch) ** 2
            backbone = TokenBackbone(
                data.codebook, data.classes, tokens, model.width, model.dropout, stack
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
    """The device of trainer.accelerator; auto: CUDA, then Apple's MPS, then the CPU."""
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if accelerator == "auto":
        return torch.device(next(name for name, there in have.items() if there))
    if not have[accelerator]:
        there = ", ".join(name for name, found in have.items() if found)
        raise UserError(f"trainer.accelerator={accelerator}: torch finds none here; choose {there}")
    return torch.device(accelerator)


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's name; auto: bf16 autocast on CUDA that has it, float32 elsewhere."""
    if precision != "auto":
        return precision
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if bf16 else "32-true"
