"""Continuous tokenizers, images ↔ latents: TAESD and the KL autoencoder of Stable Diffusion."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eltlab.common.errors import first_line
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.diffusers_models import (
    load_pretrained,
    locate,
    rebuild,
    settings_of,
    unfit,
)
from eltlab.data.tokenizers.frozen_networks import Settings, Tensors, exact, fingerprint, in_colour


class Autoencoder:
    """A network of diffusers; its latents have about unit variance.

    factor: pixels a side of one latent position. channels: of a latent. variance: whether encode
    gives one. hash: of weights, class, configuration and scale.
    """

    kind: Literal["latents"] = "latents"
    codebook: None = None

    def __init__(self, name: str, network: Any) -> None:
        """network: a frozen AutoencoderTiny or AutoencoderKL."""
        self.name, self.network = name, network
        self.factor = 2 ** (len(network.config.block_out_channels) - 1)
        self.channels: int = network.config.latent_channels
        self.variance = type(network).__name__ == "AutoencoderKL"
        self.shift, self.scale = _normalisation(network.config)
        self.device = torch.device("cpu")
        self.hash = fingerprint(self.tensors(), self.settings())

    def to(self, device: torch.device | str) -> "Autoencoder":
        self.device = torch.device(device)
        self.network.to(self.device)
        self.shift, self.scale = self.shift.to(self.device), self.scale.to(self.device)
        return self

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [N, 1 or 3, H, W] → mean and log-variance, float32 [N, c, H/f, W/f], on its device.

        Both of the scaled latents; TAESD has no variance: None. Raises UserError where f does not
        divide H and W.
        """
        with exact(self.device):
            encoded = self.network.encode(to_float(in_colour(images, self.factor).to(self.device)))
            gaussian = getattr(encoded, "latent_dist", None)
            mean = encoded.latents if gaussian is None else gaussian.mean
            latents = (mean - self.shift) * self.scale
            logvar = None if gaussian is None else gaussian.logvar + 2 * self.scale.log()
        # Copied outside, where tensors may be trained on.
        return _copy(latents, images), None if logvar is None else _copy(logvar, images)

    def decode(self, latents: Tensor) -> Tensor:
        """float [N, c, h, w] in the scale of `encode` → uint8 [N, 3, h·f, w·f] on their device."""
        with exact(self.device):
            raw = latents.to(self.device, torch.float32) / self.scale + self.shift
            images = to_uint8(self.network.decode(raw).sample)
        return _copy(images, latents)

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    def settings(self) -> Settings:
        """All but the tensors: what `restore` builds it from."""
        return {"name": self.name, **settings_of(self.network)}


def _copy(result: Tensor, source: Tensor) -> Tensor:
    return result.to(source.device, copy=True)


def _normalisation(config: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale [c, 1, 1] of latents = (mean − shift)·scale.

    scaling_factor and shift_factor as diffusers' Stable Diffusion 3 pipeline uses them; latents_mean
    and latents_std, one a channel and rarely given, as its Stable Diffusion XL pipeline does.
    """
    blank = torch.zeros(config.latent_channels, 1, 1)
    shift = blank + (config.get("shift_factor") or 0)
    scale = blank + config.scaling_factor
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        shift = shift + torch.tensor(config.latents_mean).view_as(blank)
        scale = scale / torch.tensor(config.latents_std).view_as(blank)
    return shift, scale


def restore(settings: Settings, tensors: Tensors) -> Autoencoder:
    """The tokenizer of these `settings()` and `tensors()`."""
    return Autoencoder(settings["name"], rebuild(settings, tensors))


def load_autoencoder(name: str, weights: str, subfolder: str | None) -> Autoencoder:
    """taesd or sd_vae, from a folder or the hub. Raises UserError."""
    if name == "taesd":
        place = locate(weights, subfolder)
        if place is not None and not (place / "config.json").is_file():
            return Autoencoder(name, _original_taesd(place))
    return Autoencoder(name, load_pretrained(name, weights, subfolder))


# --- TAESD's own files ----------------------------------------------------------------------------

ENCODER, DECODER = "taesd_encoder.safetensors", "taesd_decoder.safetensors"


def _original_taesd(folder: Path) -> nn.Module:
    """The two files of github.com/madebyollin/taesd, whose layers are numbered in one Sequential.

    Its decoder counts the clamp, which has no weights, as layer 0; diffusers' does not.
    """
    missing = next((file for file in (ENCODER, DECODER) if not (folder / file).is_file()), None)
    if missing:
        raise unfit(
            folder,
            f"there is neither config.json nor {missing}",
            f"a folder with {ENCODER} and {DECODER}, one that diffusers saved, or a hub id",
        )
    try:
        encoder, decoder = load_file(folder / ENCODER), load_file(folder / DECODER)
        tensors = {f"encoder.layers.{name}": value for name, value in encoder.items()}
        for name, value in decoder.items():
            layer, rest = name.split(".", 1)
            tensors[f"decoder.layers.{int(layer) - 1}.{rest}"] = value
        channels = decoder["1.weight"].shape[1]
        config = {} if channels == 4 else {"latent_channels": channels}
        return rebuild({"class": "AutoencoderTiny", "config": config}, tensors)
    except Exception as error:  # truncated, of another program, of other names or shapes
        raise unfit(
            folder, f"not the files of TAESD ({first_line(error)[:120]})", "whole ones"
        ) from None
