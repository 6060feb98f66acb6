"""Images and clips to patches and back: the one layout that backbones and tokenizers share."""

from typing import NamedTuple

from torch import Tensor

from eltlab.config.schema import DataConfig


class Patches(NamedTuple):
    """How images [C, H, W] or clips [F, C, H, W] of this shape are cut into tokens.

    A token covers patch × patch pixels of frame_patch frames in all channels. Tokens are ordered by
    frame, then row, then column.
    """

    shape: tuple[int, ...]
    patch: int
    frame_patch: int = 1

    @property
    def clip(self) -> tuple[int, ...]:
        """(F, C, H, W). An image is a clip of one frame."""
        return self.shape if len(self.shape) == 4 else (1, *self.shape)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along frames, rows and columns."""
        frames, _, height, width = self.clip
        return frames // self.frame_patch, height // self.patch, width // self.patch

    @property
    def values(self) -> int:
        """P: the numbers in a token, frame_patch · C · patch²."""
        return self.frame_patch * self.clip[1] * self.patch**2

    @property
    def across(self) -> tuple[int, ...]:
        """(frame_patch,), or () if it is 1: the hashes of image codebooks do not contain it."""
        return () if self.frame_patch == 1 else (self.frame_patch,)

    def cut(self, x: Tensor) -> Tensor:
        """[B, *shape] → [B, T, values]."""
        t, h, w = self.grid
        p = self.patch
        x = x.reshape(len(x), t, self.frame_patch, self.clip[1], h, p, w, p)
        return x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(len(x), t * h * w, self.values)

    def join(self, x_BTP: Tensor) -> Tensor:
        """The inverse of `cut`."""
        t, h, w = self.grid
        p = self.patch
        x = x_BTP.reshape(len(x_BTP), t, h, w, self.frame_patch, self.clip[1], p, p)
        return x.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(len(x), *self.shape)


def patches_of(data: DataConfig) -> Patches:
    """How a backbone, or a codebook over pixels, cuts the samples of this data set."""
    return Patches(data.shape, data.patch, data.frame_patch)
