"""Discrete tokenizers, images ↔ ids of codes: VQModel, MaskGIT's VQGAN, and k-means over latents."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers.autoencoders import Autoencoder
from eltlab.data.tokenizers.batch_sizes import VECTORS_AT_ONCE, clips_per_batch, network_batch
from eltlab.data.tokenizers.diffusers_models import diffusers_settings
from eltlab.data.tokenizers.frozen_networks import (
    Settings,
    Tensors,
    fingerprint,
    full_precision,
    to_rgb,
)
from eltlab.data.tokenizers.kmeans import choose_sample, fit_codes
from eltlab.data.tokenizers.maskgit_vqgan import VQGAN


class Codebook(ABC):
    """K codes of c channels. The id of a latent position is that of its nearest code.

    factor: pixels per side of one position. hash: of all that affects ids and images.
    """

    kind: Literal["tokens"] = "tokens"

    def __init__(self, name: str, network: Any, factor: int, codes: Tensor) -> None:
        """network: the frozen network between images and vectors."""
        self.name, self.network, self.factor, self.codes = name, network, factor, codes
        self.codebook, self.channels = codes.shape
        self.device = torch.device("cpu")
        self.hash = fingerprint(self.tensors(), self.settings())

    def to(self, device: torch.device | str) -> "Codebook":
        self.device = torch.device(device)
        self.network.to(self.device)
        self.codes = self.codes.to(self.device)
        return self

    def encode(self, images: Tensor) -> Tensor:
        """uint8 [N, 1 or 3, H, W] → ids int64 [N, (H/f)·(W/f)], row by row, on the device of the images.

        Raises UserError if f does not divide H and W.
        """
        with full_precision(self.device):
            vectors = self.to_vectors(images.to(self.device)).flatten(2).transpose(1, 2)
            parts = vectors.flatten(0, 1).split(VECTORS_AT_ONCE)
            nearest = [torch.cdist(part, self.codes).argmin(dim=-1) for part in parts]
            ids = torch.cat(nearest).view(len(images), -1)
        # Copied outside of inference mode, whose tensors cannot be trained on.
        return ids.to(images.device, copy=True)

    def decode(self, ids_NT: Tensor) -> Tensor:
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

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    @abstractmethod
    def settings(self) -> Settings:
        """What `tokenizer_files.unpack_tokenizer` needs besides the tensors."""


class VqModel(Codebook):
    """diffusers' VQModel, as in latent diffusion, MoVQ and amused."""

    def __init__(self, name: str, network: Any) -> None:
        factor = 2 ** (len(network.config.block_out_channels) - 1)
        # Images of amused are in [0, 1], those of all other models in [−1, 1]. No key says so, but only the
        # configuration of amused has lookup_from_codebook, and its pipeline does not normalise images.
        self.from_zero = bool(network.config.get("lookup_from_codebook"))
        super().__init__(name, network, factor, network.quantize.embedding.weight)

    def to_vectors(self, images: Tensor) -> Tensor:
        x = to_float(to_rgb(images, self.factor))
        return self.network.encode((x + 1) / 2 if self.from_zero else x).latents

    def to_images(self, vectors: Tensor) -> Tensor:
        # Not by network.decode, which would look for the nearest codes once more.
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
    """From the cache, or fitted to a sample of the training split.

    Raises UserError if there are fewer distinct latents than codes.
    """
    sample = choose_sample(train)
    cached = f"{base.name}-{train.name}"
    identity = (base.hash, sample.hash)
    means = fit_codes(
        cached, identity, "tokenizer.codes", codes, "latents", lambda: _latents(base, sample)
    )
    return LatentCodebook(name, base, means)


def _latents(base: Autoencoder, images: ImageSet) -> np.ndarray:
    """The mean at every position of every image or frame, float32 [M, c]."""
    latents, done = [], 0
    with Bar(f"encode {images.name}", len(images), unit=example_unit(images.shape)) as bar:
        for part in images.read_in_order(clips_per_batch(network_batch(base.device), images.shape)):
            mean_NCHW, _ = base.encode(part.flatten(0, -4))  # the frames of clips become images
            latents.append(mean_NCHW.permute(0, 2, 3, 1).reshape(-1, base.channels))
            done += len(part)
            bar.update(done)
    return torch.cat(latents).numpy()
