"""What every tokenizer can do."""

from typing import Any, Protocol

import torch
from torch import Tensor


class Tokenizer(Protocol):
    """Images or clips ↔ ids or latents. hash identifies it."""

    hash: str

    def encode(self, images: Tensor) -> Any:
        """uint8 [N, C, H, W] or [N, F, C, H, W] → ids [N, T], or (mean, log-variance or None) of latents."""

    def decode(self, drawn: Tensor, /) -> Tensor:
        """Ids or latents → uint8 images or clips."""

    def to(self, device: torch.device) -> "Tokenizer":
        """Moves its network to the device and returns itself."""
