"""An image tokenizer over clips: each frame on its own."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eltlab.data.tokenizers.tokenizer_files import Tokenizer


def batch_of(device: torch.device) -> int:
    """Images that a tokenizer sees at a time: a CPU is fastest where a batch stays in its caches."""
    return 2 if device.type == "cpu" else 64


class PerFrame:
    """clips uint8 [N, F, C, H, W] ↔ ids [N, F·T], frame after frame, or latents [N, F, c, h, w]."""

    def __init__(self, inner: Tokenizer, frames: int) -> None:
        self.inner, self.frames, self.hash = inner, frames, inner.hash

    def to(self, device: torch.device) -> "PerFrame":
        self.inner.to(device)
        return self

    def encode(self, clips: Tensor) -> Any:
        """Ids, or mean and log-variance (or None) of latents."""
        made = [self.inner.encode(part) for part in self._parts(clips.flatten(0, 1))]
        ids = [part for part in made if isinstance(part, Tensor)]
        if ids:
            return torch.cat(ids).reshape(len(clips), -1)
        return tuple(
            None if parts[0] is None else self._clips(torch.cat(parts))
            for parts in zip(*made, strict=True)
        )

    def decode(self, drawn: Tensor, /) -> Tensor:
        frames = (
            drawn.reshape(len(drawn) * self.frames, -1) if drawn.dim() == 2 else drawn.flatten(0, 1)
        )
        return self._clips(torch.cat([self.inner.decode(part) for part in self._parts(frames)]))

    def _parts(self, frames: Tensor) -> Sequence[Tensor]:
        return frames.split(batch_of(self.inner.device))

    def _clips(self, frames: Tensor) -> Tensor:
        return frames.unflatten(0, (-1, self.frames))


def over(tokenizer: Tokenizer, frames: int) -> Tokenizer | PerFrame:
    """The tokenizer for images (frames = 1) or for clips of so many frames."""
    return tokenizer if frames == 1 else PerFrame(tokenizer, frames)
