"""Images to patches and back: the one layout that backbones and tokenizers share."""

import math

from torch import Tensor


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] → [B, (H/p)·(W/p), C·p·p]: token (i, j) holds the pixels of patch (i, j)."""
    B, C, H, W = x_BCHW.shape
    x = x_BCHW.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch * patch)


def unpatchify(x_BTP: Tensor, patch: int, channels: int) -> Tensor:
    """The inverse of `patchify`, for square images."""
    B, T, _ = x_BTP.shape
    side = math.isqrt(T)
    x = x_BTP.reshape(B, side, side, channels, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, channels, side * patch, side * patch)
