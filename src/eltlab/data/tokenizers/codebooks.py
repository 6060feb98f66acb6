"""Discrete tokenizers, images ↔ ids of codes: VQModel, MaskGIT's VQGAN, and k-means over latents."""

import math
from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from eltlab.data.images.image_files import Images, read_with_bar
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.autoencoders import Autoencoder
from eltlab.data.tokenizers.diffusers_models import diffusers_settings
from eltlab.data.tokenizers.kmeans import choose_sample, fit_codes
from eltlab.data.tokenizers.maskgit_vqgan import VQGAN
from eltlab.data.tokenizers.tokenizer import (
    VECTORS_AT_ONCE,
    FrozenTokenizer,
    Settings,
    Tensors,
    clips_per_batch,
    full_precision,
    network_batch,
    to_rgb,
)


class Codebook(FrozenTokenizer):
    """K codes of c channels. The id of a latent position is the index of its nearest code."""

    kind = "tokens"

    def __init__(self, name: str, network: Any, factor: int, codes: Tensor) -> None:
        """network: the frozen network between images and vectors."""
        self.factor, self.codes = factor, codes
        self.codebook, self.channels = codes.shape
        super().__init__(name, network)

    def to(self, device: torch.device | str) -> Self:
        self.codes = self.codes.to(device)
        return super().to(device)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, 1 or 3, H, W] → ids int64 [N, (H/f)·(W/f)], row by row, on the device of the images.
        Raises UserError if f does not divide H and W."""
        with full_precision(self.device):
            vectors = self.to_vectors(images.to(self.device)).flatten(2).transpose(1, 2)
            parts = vectors.flatten(0, 1).split(VECTORS_AT_ONCE)
            nearest = [torch.cdist(part, self.codes).argmin(dim=-1) for part in parts]
            ids = torch.cat(nearest).view(len(images), -1)
        # Copied outside of inference mode, whose tensors cannot be trained on.
        return ids.to(images.device, copy=True)

    def decode(self, ids_NT: Tensor, /) -> Tensor:
        """ids [N, T] of square images → uint8 [N, 3, H, W] on their device."""
        side = math.isqrt(ids_NT.shape[1])
        with full_precision(self.device):
            vectors_NTC = self.codes[ids_NT.to(self.device)]
            images = self.to_images(vectors_NTC.transpose(1, 2).unflatten(2, (side, side)))
        return images.to(ids_NT.device, copy=True)

    @abstractmethod
    def to_vectors(self, images: Tensor) -> Tensor:
        """uint8 images → float32 [N, c, h, w], not yet replaced by their nearest codes."""

    @abstractmethod
    def to_images(self, vectors: Tensor) -> Tensor:
        """Codes [N, c, h, w] → uint8 images."""


class VqModel(Codebook):
    """diffusers' VQModel, as in latent diffusion, MoVQ and amused."""

    def __init__(self, name: str, network: Any) -> None:
        factor = 2 ** (len(network.config.block_out_channels) - 1)
        # amused takes images in [0, 1], all other models in [−1, 1]. No key tells them apart, but only the
        # configuration of amused has lookup_from_codebook, and its pipeline does not normalise images.
        self.from_zero = bool(network.config.get("lookup_from_codebook"))
        super().__init__(name, network, factor, network.quantize.embedding.weight)

    def to_vectors(self, images: Tensor) -> Tensor:
        x = to_float(to_rgb(images, self.factor))
        return self.network.encode((x + 1) / 2 if self.from_zero else x).latents

    def to_images(self, vectors: Tensor) -> Tensor:
        # Without network.decode, which would search for the nearest codes again.
        spatial = vectors if self.network.config.norm_type == "spatial" else None
        x = self.network.decoder(self.network.post_quant_conv(vectors), spatial)
        return to_uint8(x * 2 - 1 if self.from_zero else x)

    def settings(self) -> Settings:
        return {"name": self.name, **diffusers_settings(self.network)}


class MaskgitVqgan(Codebook):
    def __init__(self, name: str, network: VQGAN) -> None:
        factor = 2 ** (len(network.encoder.down) - 1)
        super().__init__(name, network, factor, network.quantize["embedding"].weight)  # type: ignore[arg-type]

    def to_vectors(self, images: Tensor) -> Tensor:
        return self.network.encoder(to_rgb(images, self.factor).float() / 255)

    def to_images(self, vectors: Tensor) -> Tensor:
        return to_uint8(self.network.decoder(vectors) * 2 - 1)

    def settings(self) -> Settings:
        return {"name": self.name, "class": "VQGAN"}


class LatentCodebook(Codebook):
    """k-means over the scaled latents of a continuous tokenizer."""

    def __init__(self, name: str, base: Autoencoder, codes: Tensor) -> None:
        super().__init__(name, base, base.factor, codes)

    def to_vectors(self, images: Tensor) -> Tensor:
        return self.network.encode(images)[0]

    def to_images(self, vectors: Tensor) -> Tensor:
        return self.network.decode(vectors)

    def tensors(self) -> Tensors:
        base = {f"base.{name}": value for name, value in self.network.tensors().items()}
        return {"codes": self.codes, **base}

    def settings(self) -> Settings:
        return {"name": self.name, "base": self.network.settings()}


def fit_latent_codebook(name: str, base: Autoencoder, train: Images, codes: int) -> LatentCodebook:
    """From the cache, or fitted to `choose_sample`. Raises UserError if fewer latents are distinct."""
    sample = choose_sample(train)

    def encode() -> np.ndarray:
        """The mean at every position of every image or frame, float32 [M, c]."""
        latents = []
        batch = clips_per_batch(network_batch(base.device), sample.shape)
        for part in read_with_bar("encode", sample, batch):
            mean_NCHW, _ = base.encode(part.flatten(0, -4))  # the frames of clips become images
            latents.append(mean_NCHW.permute(0, 2, 3, 1).reshape(-1, base.channels))
        return torch.cat(latents).numpy()

    cached, identity = f"{base.name}-{train.name}", (base.hash, sample.hash)
    means = fit_codes(cached, identity, "tokenizer.codes", codes, "latents", encode)
    return LatentCodebook(name, base, means)
