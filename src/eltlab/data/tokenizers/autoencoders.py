"""Continuous tokenizers, images ↔ latents: TAESD and the KL autoencoder of Stable Diffusion."""

from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eltlab.common.errors import first_line
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.diffusers_models import (
    diffusers_settings,
    find_weights,
    load_pretrained,
    rebuild,
    weights_error,
)
from eltlab.data.tokenizers.tokenizer import FrozenTokenizer, Settings, full_precision, to_rgb


class Autoencoder(FrozenTokenizer):
    """A network of diffusers, with latents scaled to about unit variance."""

    kind = "latents"

    def __init__(self, name: str, network: Any) -> None:
        """network: a frozen AutoencoderTiny or AutoencoderKL."""
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        self.channels = network.config.latent_channels
        self.variance = type(network).__name__ == "AutoencoderKL"
        self.shift, self.scale = _normalisation(network.config)
        super().__init__(name, network)

    def to(self, device: torch.device | str) -> Self:
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return super().to(device)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [N, 1 or 3, H, W] → mean and log-variance of the scaled latents, float32 [N, c, H/f, W/f],
        on their device. TAESD has no variance: None. Raises UserError if f does not divide H and W."""
        with full_precision(self.device):
            encoded = self.network.encode(to_float(to_rgb(images, self.factor).to(self.device)))
            gaussian = getattr(encoded, "latent_dist", None)
            mean = encoded.latents if gaussian is None else gaussian.mean
            latents = (mean - self.shift) * self.scale
            logvar = None if gaussian is None else gaussian.logvar + 2 * self.scale.log()
        # Copied outside of inference mode, whose tensors cannot be trained on.
        if logvar is not None:
            logvar = logvar.to(images.device, copy=True)
        return latents.to(images.device, copy=True), logvar

    def decode(self, latents: Tensor, /) -> Tensor:
        """Scaled latents, float [N, c, h, w] → uint8 [N, 3, h·f, w·f] on their device."""
        with full_precision(self.device):
            raw = latents.to(self.device, torch.float32) / self.scale + self.shift
            images = to_uint8(self.network.decode(raw).sample)
        return images.to(latents.device, copy=True)

    def settings(self) -> Settings:
        return {"name": self.name, **diffusers_settings(self.network)}


def _normalisation(config: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale [c, 1, 1] of latents = (mean − shift)·scale. scaling_factor and shift_factor are used
    as in diffusers' Stable Diffusion 3 pipeline; latents_mean and latents_std, one per channel and rarely
    given, as in its Stable Diffusion XL pipeline."""
    blank = torch.zeros(config.latent_channels, 1, 1)
    shift = blank + (config.get("shift_factor") or 0)
    scale = blank + config.scaling_factor
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift = shift + torch.tensor(config.latents_mean).view_as(blank)
        scale = scale / torch.tensor(config.latents_std).view_as(blank)
    return shift, scale


def load_autoencoder(name: str, weights: str, subfolder: str | None) -> Autoencoder:
    """taesd or sd_vae, from a folder or the hub. Raises UserError."""
    if name == "taesd":
        folder = find_weights(weights, subfolder)
        if folder is not None and not (folder / "config.json").is_file():
            return Autoencoder(name, _load_original_taesd(folder))
    return Autoencoder(name, load_pretrained(name, weights, subfolder))


ENCODER, DECODER = "taesd_encoder.safetensors", "taesd_decoder.safetensors"


def _load_original_taesd(folder: Path) -> nn.Module:
    """The two files of github.com/madebyollin/taesd, whose layers are numbered in one Sequential."""
    missing = next((file for file in (ENCODER, DECODER) if not (folder / file).is_file()), None)
    if missing:
        raise weights_error(
            folder,
            f"there is neither config.json nor {missing}",
            f"a folder with {ENCODER} and {DECODER}, one that diffusers saved, or a hub id",
        )
    try:
        encoder, decoder = load_file(folder / ENCODER), load_file(folder / DECODER)
        tensors = {f"encoder.layers.{name}": value for name, value in encoder.items()}
        for name, value in decoder.items():
            layer, rest = name.split(".", 1)
            # The original counts the clamp, which has no weights, as layer 0; diffusers does not.
            tensors[f"decoder.layers.{int(layer) - 1}.{rest}"] = value
        channels = decoder["1.weight"].shape[1]
        config = {} if channels == 4 else {"latent_channels": channels}
        return rebuild({"class": "AutoencoderTiny", "config": config}, tensors)
    except Exception as error:  # truncated files, or tensors with other names or shapes
        problem = f"not the files of TAESD ({first_line(error)[:120]})"
        raise weights_error(folder, problem, "whole ones") from None
