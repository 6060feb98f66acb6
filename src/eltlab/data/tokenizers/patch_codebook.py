"""A k-means codebook over pixel patches: images ↔ tokens for the masked models."""

import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from eltlab.common.cache import cache_dir, make_once
from eltlab.common.errors import UserError
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.images.image_files import CHUNK_BYTES, Images
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.model.patches import Patches

ENCODED = 1024  # images of a stream that are encoded at a time
VECTORS_AT_ONCE = 2**13  # patches against all codes: the distances stay in the processor's cache
# What k-means is fitted to at most: its vectors then take 1 GiB.
SAMPLE_IMAGES, SAMPLE_VALUES = 50_000, 2**28


class Decoder(Protocol):
    """What every tokenizer can do; `hash` names it."""

    hash: str

    def encode(self, images: Tensor) -> Any:
        """uint8 images [N, C, H, W] → ids [N, T], or mean and log-variance (or None) of latents."""

    def decode(self, drawn: Tensor, /) -> Tensor:
        """Ids or latents → uint8 images [N, C, H, W]."""

    def to(self, device: torch.device) -> "Decoder":
        """Itself, with its network on the device."""


class PatchCodebook:
    """Codes [K, P] in the range of the pixels, [−1, 1]; the token of a patch is the code nearest to it."""

    def __init__(self, codes: Tensor, patches: Patches) -> None:
        self.codes, self.patches = codes, patches
        self.hash = digest(codes.cpu().numpy(), patches.clip[1], patches.patch, *patches.across)

    def encode(self, images: Tensor) -> Tensor:
        """uint8 images [N, C, H, W] or clips [N, F, C, H, W] → ids [N, T] of the nearest codes."""
        codes = self.codes.to(images.device)
        tokens = math.prod(self.patches.grid)
        ids = []
        for part in images.split(images_at_once(tokens)):
            vectors = self.patches.cut(to_float(part)).flatten(0, 1)
            ids.append(torch.cdist(vectors, codes).argmin(dim=-1).view(len(part), tokens))
        return torch.cat(ids)

    def to(self, device: torch.device) -> "PatchCodebook":
        """Itself: the codes follow what they are asked for."""
        return self

    def decode(self, ids_NT: Tensor, /) -> Tensor:
        """ids [N, T] → uint8 images or clips."""
        pixels_NTP = self.codes.to(ids_NT.device)[ids_NT]
        return to_uint8(self.patches.join(pixels_NTP))


def images_at_once(tokens: int) -> int:
    """A power of two, so that a stream in parts of a larger one is cut where the whole would be."""
    return min(ENCODED, power_of_two(VECTORS_AT_ONCE // tokens))


def part_of_stream(images: Images, tokens: int) -> int:
    """How many are encoded at a time: of clips fewer, as the parts that were read ahead wait in memory."""
    return min(
        ENCODED, max(power_of_two(CHUNK_BYTES // math.prod(images.shape)), images_at_once(tokens))
    )


def power_of_two(most: int) -> int:
    """The largest that is not above it, at least 1."""
    return 2 ** int(math.log2(max(most, 1)))


def encode_set(
    tokenizer: PatchCodebook, images: Images, mirror: bool = False
) -> tuple[Tensor, Tensor | None]:
    """ids [N, T] of a whole set, and with mirror those of its images mirrored left to right."""
    straight, mirrored, done = [], [], 0
    with Bar(f"encode {images.name}", len(images), unit=example_unit(images.shape)) as bar:
        for part in images.read_in_order(part_of_stream(images, math.prod(tokenizer.patches.grid))):
            straight.append(tokenizer.encode(part))
            if mirror:
                mirrored.append(tokenizer.encode(part.flip(-1)))
            done += len(part)
            bar.update(done)
    return torch.cat(straight), torch.cat(mirrored) if mirror else None


def fit_codebook(train: Images, patches: Patches, codebook: int) -> PatchCodebook:
    """The codebook of a training split, from the cache or fitted (seed 0) and cached.

    Fitted to all images, or to a seeded subset that k-means can hold in memory. Raises UserError
    where there are fewer distinct patches than codes.
    """
    import sklearn

    sample = sample_of(train)
    size = "x".join(map(str, (*patches.across, patches.patch, patches.patch)))

    def fit() -> np.ndarray:
        vectors = patches.cut(to_float(sample.images)).flatten(0, 1).numpy()
        distinct = count_distinct(vectors, codebook)
        if codebook > distinct:
            raise UserError(
                f"data.codebook={codebook}: the training split has {distinct} distinct "
                f"{size} patches; choose at most that many codes"
            )
        return fit_means(vectors, codebook, "patches")

    key = (sample.hash, size, codebook, sklearn.__version__)
    return PatchCodebook(cached_codes(train.name, key, fit), patches)


def sample_of(train: Images) -> ImageSet:
    """The whole split, or the seeded subset of it that k-means is fitted to."""
    most = min(SAMPLE_IMAGES, SAMPLE_VALUES // math.prod(train.shape))
    return train.subset(min(most, len(train)))


def cached_codes(name: str, key: tuple, fit: Callable[[], np.ndarray]) -> Tensor:
    """float32 [K, F] that fit gave for this key: read from cache_dir()/codebooks once it is there."""
    path = cache_dir() / "codebooks" / f"{name.replace('/', '-')}-{digest(*key)}.npy"

    def write(place: Path) -> None:
        buffer = io.BytesIO()
        np.save(buffer, fit())
        place.write_bytes(buffer.getvalue())

    make_once(path, write)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def fit_means(vectors: np.ndarray, count: int, what: str) -> np.ndarray:
    """float32 [count, F] of vectors [M, F], of which at least as many differ."""
    from sklearn.cluster import MiniBatchKMeans

    print(f"k-means: {count} codes for {len(vectors):,} {what}", file=sys.stderr, flush=True)
    # Without labels, which no one reads: the centres are the same.
    means = MiniBatchKMeans(
        count, random_state=0, n_init=3, batch_size=4096, compute_labels=False
    ).fit(vectors)
    return means.cluster_centers_.astype(np.float32)


def count_distinct(vectors: np.ndarray, enough: int) -> int:
    """How many rows differ; counts no further than the rows that hold enough (sorting all is slow)."""
    rows = 4 * enough
    while (distinct := len(np.unique(vectors[:rows], axis=0))) < enough and rows < len(vectors):
        rows *= 4
    return distinct


RECONSTRUCTED = 8  # images at a time


def clips_at_once(images: int, shape: Sequence[int]) -> int:
    """As many clips [F, C, H, W] as hold that many images, at least one; of images [C, H, W] that many."""
    return max(images // math.prod(shape[:-3]), 1)


def reconstruct(tokenizer: Decoder, images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] encoded and decoded again; of a latent its mean."""
    parts, done = [], 0
    with Bar("reconstruct", len(images), unit=example_unit(images.shape[1:])) as bar:
        for part in images.split(clips_at_once(RECONSTRUCTED, images.shape[1:])):
            made = tokenizer.encode(part)
            parts.append(tokenizer.decode(made if isinstance(made, Tensor) else made[0]))
            done += len(part)
            bar.update(done)
    return torch.cat(parts)


def psnr(images: Tensor, reconstructed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images, from the mean squared error of all of them."""
    squares = 0  # in integers, which are exact, and in parts: of clips the whole would not fit
    for one, other in zip(
        images.split(RECONSTRUCTED), reconstructed.split(RECONSTRUCTED), strict=True
    ):
        squares += int((one.int() - other.int()).square().sum(dtype=torch.int64))
    error = squares / images.numel()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
