"""Discrete tokenizers, images ↔ ids of codes: VQModel, MaskGIT's VQGAN, and k-means over latents."""

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.autoencoders import Autoencoder
from eltlab.data.tokenizers.diffusers_models import settings_of
from eltlab.data.tokenizers.frozen_networks import Settings, Tensors, exact, fingerprint, in_colour
from eltlab.data.tokenizers.maskgit_vqgan import VQGAN
from eltlab.data.tokenizers.patch_codebook import (
    VECTORS_AT_ONCE,
    cached_codes,
    clips_at_once,
    count_distinct,
    fit_means,
    sample_of,
)

# Images that are encoded at a time for k-means to be fitted to. Of two images of 128 pixels a side
# a layer's output stays in a processor's cache; a GPU wants more to do.
ENCODED = {"cpu": 2, "cuda": 64}


class Codebook(ABC):
    """K codes of c channels; each latent position has the id of the code that is nearest to it.

    factor: pixels a side of one position. hash: of all that affects ids and images.
    """

    kind: Literal["tokens"] = "tokens"

    def __init__(self, name: str, network: Any, factor: int, codes: Tensor) -> None:
        """network: what makes vectors and pictures, frozen."""
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
        """uint8 [N, 1 or 3, H, W] → ids int64 [N, (H/f)·(W/f)], row by row, on the images' device.

        Raises UserError where f does not divide H and W.
        """
        with exact(self.device):
            vectors_NTC = self.vectors(images.to(self.device)).flatten(2).transpose(1, 2)
            ids = nearest_codes(vectors_NTC.flatten(0, 1), self.codes).view(len(images), -1)
        # Copied outside, where tensors may be trained on.
        return ids.to(images.device, copy=True)

    def decode(self, ids_NT: Tensor) -> Tensor:
        """ids [N, T] of square images → uint8 [N, 3, H, W] on their device."""
        side = math.isqrt(ids_NT.shape[1])
        with exact(self.device):
            vectors_NTC = self.codes[ids_NT.to(self.device)]
            images = self.pictures(vectors_NTC.transpose(1, 2).unflatten(2, (side, side)))
        return images.to(ids_NT.device, copy=True)

    @abstractmethod
    def vectors(self, images: Tensor) -> Tensor:
        """uint8 images → float32 [N, c, h, w], each to become the code that is nearest to it."""

    @abstractmethod
    def pictures(self, vectors: Tensor) -> Tensor:
        """Codes [N, c, h, w] → uint8 images."""

    @abstractmethod
    def tensors(self) -> Tensors: ...

    @abstractmethod
    def settings(self) -> Settings:
        """All but the tensors: what tokenizers.tokenizer_of builds it from."""


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """[M, c] against [K, c] → ids [M]."""
    parts = vectors.split(VECTORS_AT_ONCE)
    return torch.cat([torch.cdist(part, codes).argmin(dim=-1) for part in parts])


class VqModel(Codebook):
    """diffusers' VQModel: of latent diffusion, MoVQ, amused."""

    def __init__(self, name: str, network: Any) -> None:
        factor = 2 ** (len(network.config.block_out_channels) - 1)
        super().__init__(name, network, factor, network.quantize.embedding.weight)

    @property
    def _from_zero(self) -> bool:
        """Whether its images are in [0, 1] and not in [−1, 1]. A configuration does not say: those
        of amused are, whose pipeline normalises nothing, and amused alone has lookup_from_codebook.
        """
        return bool(self.network.config.get("lookup_from_codebook"))

    def vectors(self, images: Tensor) -> Tensor:
        x = to_float(in_colour(images, self.factor))
        return self.network.encode((x + 1) / 2 if self._from_zero else x).latents

    def pictures(self, vectors: Tensor) -> Tensor:
        # Not by network.decode, which would look for the nearest codes once more.
        spatial = vectors if self.network.config.norm_type == "spatial" else None
        x = self.network.decoder(self.network.post_quant_conv(vectors), spatial)
        return to_uint8(x * 2 - 1 if self._from_zero else x)

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    def settings(self) -> Settings:
        return {"name": self.name, **settings_of(self.network)}


class MaskgitVqgan(Codebook):
    def __init__(self, name: str, network: VQGAN) -> None:
        super().__init__(name, network, 2 ** (len(network.encoder.down) - 1), network.codes)

    def vectors(self, images: Tensor) -> Tensor:
        return self.network.encoder(in_colour(images, self.factor).float() / 255)

    def pictures(self, vectors: Tensor) -> Tensor:
        return to_uint8(self.network.decoder(vectors) * 2 - 1)

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    def settings(self) -> Settings:
        return {"name": self.name, "class": "VQGAN"}


class LatentCodebook(Codebook):
    """k-means over the latents of a continuous tokenizer, in whose scale the codes are."""

    def __init__(self, name: str, base: Autoencoder, codes: Tensor) -> None:
        super().__init__(name, base, base.factor, codes)

    def vectors(self, images: Tensor) -> Tensor:
        return self.network.encode(images)[0]

    def pictures(self, vectors: Tensor) -> Tensor:
        return self.network.decode(vectors)

    def tensors(self) -> Tensors:
        under = {f"base.{name}": value for name, value in self.network.tensors().items()}
        return {"codes": self.codes, **under}

    def settings(self) -> Settings:
        return {"name": self.name, "base": self.network.settings()}


def fit_latent_codebook(name: str, base: Autoencoder, train: Images, codes: int) -> LatentCodebook:
    """From the cache, or fitted (seed 0) to all images or to a seeded subset of them, and cached.

    Raises UserError where there are fewer distinct latents than codes.
    """
    import sklearn

    sample = sample_of(train)

    def fit() -> np.ndarray:
        vectors = _latents(base, sample).numpy()
        distinct = count_distinct(vectors, codes)
        if codes > distinct:
            raise UserError(
                f"tokenizer.codes={codes}: the training split has {distinct} distinct latents; "
                "choose at most that many"
            )
        return fit_means(vectors, codes, "latents")

    key = (base.hash, sample.hash, codes, sklearn.__version__)
    return LatentCodebook(name, base, cached_codes(f"{base.name}-{train.name}", key, fit))


def _latents(base: Autoencoder, images: Images) -> Tensor:
    """Means at every position of every image, float32 [M, c]."""
    latents, done = [], 0
    with Bar(f"encode {images.name}", len(images), unit=example_unit(images.shape)) as bar:
        for part in images.read_in_order(clips_at_once(ENCODED[base.device.type], images.shape)):
            mean_NCHW, _ = base.encode(part.flatten(0, -4))  # of clips every frame
            latents.append(mean_NCHW.permute(0, 2, 3, 1).reshape(-1, base.channels))
            done += len(part)
            bar.update(done)
    return torch.cat(latents)
