"""What every tokenizer can do, on images and frame by frame on clips, and its batch sizes."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from eltlab.data.tokenizers.frozen_networks import Settings, Tensors, fingerprint

RECONSTRUCTED = 8  # images that are decoded at a time
VECTORS_AT_ONCE = 2**13  # the distances from these to all codes stay in the processor's cache


class Tokenizer(Protocol):
    """Images or clips ↔ ids or latents. hash identifies it."""

    hash: str

    def encode(self, images: Tensor) -> Any:
        """uint8 [N, C, H, W] or [N, F, C, H, W] → ids [N, T], or (mean, log-variance or None) of latents."""

    def decode(self, drawn: Tensor, /) -> Tensor:
        """Ids or latents → uint8 images or clips."""

    def to(self, device: torch.device) -> "Tokenizer":
        """Moves its network to the device and returns itself."""


class FrozenTokenizer(Tokenizer):
    """A pretrained or fitted tokenizer of images.

    factor: pixels per side of one position. channels: of a latent or code. codebook: the number of codes.
    variance: whether encode returns a log-variance. hash: of all that affects ids, latents and images.
    """

    kind: Literal["latents", "tokens"]
    factor: int
    channels: int
    codebook: int | None = None
    variance = False

    def __init__(self, name: str, network: Any) -> None:
        self.name, self.network = name, network
        self.device = torch.device("cpu")
        self.hash = fingerprint(self.tensors(), self.settings())

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    @abstractmethod
    def settings(self) -> Settings:
        """What `tokenizer_files.unpack_tokenizer` needs besides the tensors."""


def network_batch(device: torch.device) -> int:
    """Images per batch of a network. With two images of 128x128 pixels, a layer's output stays in a
    CPU's cache; a GPU is faster with more."""
    return 2 if device.type == "cpu" else 64


def clips_per_batch(images: int, shape: Sequence[int]) -> int:
    """How many clips [F, C, H, W] contain this many frames, at least one. For images [C, H, W], all."""
    return max(images // math.prod(shape[:-3]), 1)


class PerFrame:
    """Clips uint8 [N, F, C, H, W] ↔ ids [N, F·T] in the order of the frames, or latents [N, F, c, h, w]."""

    def __init__(self, inner: FrozenTokenizer, frames: int) -> None:
        self.inner, self.frames, self.hash = inner, frames, inner.hash

    def to(self, device: torch.device) -> "PerFrame":
        self.inner.to(device)
        return self

    def encode(self, clips: Tensor) -> Any:
        """Ids, or mean and log-variance (or None) of latents."""
        encoded = [self.inner.encode(part) for part in self._split(clips.flatten(0, 1))]
        ids = [part for part in encoded if isinstance(part, Tensor)]
        if ids:
            return torch.cat(ids).reshape(len(clips), -1)
        return tuple(None if parts[0] is None else self._join(parts) for parts in zip(*encoded, strict=True))

    def decode(self, drawn: Tensor, /) -> Tensor:
        ids = drawn.dim() == 2
        frames = drawn.reshape(len(drawn) * self.frames, -1) if ids else drawn.flatten(0, 1)
        return self._join([self.inner.decode(part) for part in self._split(frames)])

    def _split(self, frames: Tensor) -> Sequence[Tensor]:
        return frames.split(network_batch(self.inner.device))

    def _join(self, frames: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(frames)).unflatten(0, (-1, self.frames))


def adapt_to_clips(tokenizer: FrozenTokenizer, frames: int) -> FrozenTokenizer | PerFrame:
    """The tokenizer itself for images (frames = 1), and PerFrame for clips."""
    return tokenizer if frames == 1 else PerFrame(tokenizer, frames)
