"""A k-means codebook over pixel patches: images ↔ tokens for the masked models."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eltlab.common.disk_cache import digest
from eltlab.data.batches import Rows
from eltlab.data.images.image_files import CHUNK_BYTES, Images, read_with_bar
from eltlab.data.images.image_set import to_float, to_uint8
from eltlab.data.tokenizers.kmeans import choose_sample, fit_codes
from eltlab.data.tokenizers.tokenizer import VECTORS_AT_ONCE
from eltlab.model.patches import Patches

ENCODED = 1024  # images that are encoded at a time, at most


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


class CodebookRows:
    """The ids of images that are encoded when they are indexed. workers: see `read_ahead`."""

    def __init__(self, codebook: PatchCodebook, images: Rows) -> None:
        self.codebook, self.images = codebook, images
        self.workers = getattr(images, "workers", 0)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.codebook.encode(self.images[indices])


def patch_batch(tokens: int) -> int:
    """Images that are encoded at a time. A power of two, so that streamed and in-memory data are encoded in
    the same chunks: cdist rounds differently in chunks of other sizes."""
    return min(ENCODED, _power_of_two(VECTORS_AT_ONCE // tokens))


def stream_batch(shape: Sequence[int], tokens: int) -> int:
    """Images or clips that are read at a time to be encoded. Fewer if they are large, because the batches
    that were read ahead wait in memory."""
    return min(ENCODED, max(_power_of_two(CHUNK_BYTES // math.prod(shape)), patch_batch(tokens)))


def _power_of_two(limit: int) -> int:
    """The largest power of two up to limit, at least 1."""
    return 2 ** int(math.log2(max(limit, 1)))


def encode_set(
    tokenizer: PatchCodebook, images: Images, mirror: bool = False
) -> tuple[Tensor, Tensor | None]:
    """ids [N, T] of a whole set and, if mirror is true, those of the mirrored images."""
    straight, mirrored = [], []
    batch = stream_batch(images.shape, math.prod(tokenizer.patches.grid))
    for part in read_with_bar("encode", images, batch):
        straight.append(tokenizer.encode(part))
        if mirror:
            mirrored.append(tokenizer.encode(part.flip(-1)))
    return torch.cat(straight), torch.cat(mirrored) if mirror else None


def fit_codebook(train: Images, patches: Patches, codebook: int) -> PatchCodebook:
    """The codebook of a training split, from the cache or fitted to `choose_sample`. Raises UserError
    if there are fewer distinct patches than codes."""
    sample = choose_sample(train)
    size = "x".join(map(str, (*patches.across, patches.patch, patches.patch)))

    def cut() -> np.ndarray:
        return patches.cut(to_float(sample.images)).flatten(0, 1).numpy()

    identity = (sample.hash, size)
    codes = fit_codes(train.name, identity, "data.codebook", codebook, f"{size} patches", cut)
    return PatchCodebook(codes, patches)
