"""An image tokenizer over clips: each frame on its own."""

from typing import Any

import torch
from torch import Tensor

from eltlab.data.tokenizers import Tokenizer


class PerFrame:
    """clips uint8 [N, F, C, H, W] ↔ ids [N, F·T], frame after frame, or latents [N, F, c, h, w]."""

    def __init__(self, inner: Tokenizer, frames: int) -> None:
        self.inner, self.frames, self.hash = inner, frames, inner.hash

    def to(self, device: torch.device) -> "PerFrame":
        self.inner.to(device)
        return self

    def encode(self, clips: Tensor) -> Any:
        """Ids, or mean and log-variance (or None) of latents."""
        made = self.inner.encode(clips.flatten(0, 1))
        if isinstance(made, Tensor):
            return made.reshape(len(clips), -1)
        return tuple(part if part is None else self._clips(part) for part in made)

    def decode(self, drawn: Tensor, /) -> Tensor:
        frames = (
            drawn.reshape(len(drawn) * self.frames, -1) if drawn.dim() == 2 else drawn.flatten(0, 1)
        )
        return self._clips(self.inner.decode(frames))

    def _clips(self, frames: Tensor) -> Tensor:
        return frames.unflatten(0, (-1, self.frames))


def over(tokenizer: Tokenizer, frames: int) -> Tokenizer | PerFrame:
    """The tokenizer for images (frames = 1) or for clips of so many frames."""
    return tokenizer if frames == 1 else PerFrame(tokenizer, frames)
