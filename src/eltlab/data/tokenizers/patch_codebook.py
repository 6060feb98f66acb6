"""A k-means codebook over pixel patches: images ↔ tokens for the masked models."""

import math

import numpy as np
import torch
from torch import Tensor

from eltlab.common.cache import digest
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import Images
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.batch_sizes import patch_batch, stream_batch
from eltlab.data.tokenizers.kmeans import choose_sample, fit_codes
from eltlab.model.patches import Patches


class PatchCodebook:
    """Codes [K, P] in the range of the pixels, [−1, 1]. The token of a patch is its nearest code."""

    def __init__(self, codes: Tensor, patches: Patches) -> None:
        self.codes, self.patches = codes, patches
        self.hash = digest(codes.cpu().numpy(), patches.clip[1], patches.patch, *patches.across)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images [N, C, H, W] or clips [N, F, C, H, W] → ids [N, T] of the nearest codes."""
        codes = self.codes.to(images.device)
        tokens = math.prod(self.patches.grid)
        ids = []
        for part in images.split(patch_batch(tokens)):
            vectors = self.patches.cut(to_float(part)).flatten(0, 1)
            ids.append(torch.cdist(vectors, codes).argmin(dim=-1).view(len(part), tokens))
        return torch.cat(ids)

    def to(self, device: torch.device) -> "PatchCodebook":
        """Itself: each call moves the codes to the device of its input."""
        return self

    def decode(self, ids_NT: Tensor, /) -> Tensor:
        """ids [N, T] → uint8 images or clips."""
        pixels_NTP = self.codes.to(ids_NT.device)[ids_NT]
        return to_uint8(self.patches.join(pixels_NTP))


def encode_set(
    tokenizer: PatchCodebook, images: Images, mirror: bool = False
) -> tuple[Tensor, Tensor | None]:
    """ids [N, T] of a whole set, and if mirror is on, those of the mirrored images."""
    straight, mirrored, done = [], [], 0
    with Bar(f"encode {images.name}", len(images), unit=example_unit(images.shape)) as bar:
        for part in images.read_in_order(
            stream_batch(images.shape, math.prod(tokenizer.patches.grid))
        ):
            straight.append(tokenizer.encode(part))
            if mirror:
                mirrored.append(tokenizer.encode(part.flip(-1)))
            done += len(part)
            bar.update(done)
    return torch.cat(straight), torch.cat(mirrored) if mirror else None


def fit_codebook(train: Images, patches: Patches, codebook: int) -> PatchCodebook:
    """The codebook of a training split, from the cache or fitted to a sample of it.

    Raises UserError if there are fewer distinct patches than codes.
    """
    sample = choose_sample(train)
    size = "x".join(map(str, (*patches.across, patches.patch, patches.patch)))

    def cut() -> np.ndarray:
        return patches.cut(to_float(sample.images)).flatten(0, 1).numpy()

    identity = (sample.hash, size)
    codes = fit_codes(
        train.name, identity, "data.codebook", codebook, f"{size} patches", make_vectors=cut
    )
    return PatchCodebook(codes, patches)
