"""Applies an image tokenizer to each frame of a clip."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eltlab.data.tokenizers.batch_sizes import network_batch
from eltlab.data.tokenizers.tokenizer_files import FrozenTokenizer


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
        return tuple(
            None if parts[0] is None else self._join(parts) for parts in zip(*encoded, strict=True)
        )

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
