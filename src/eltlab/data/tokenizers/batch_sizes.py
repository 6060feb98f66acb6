"""How many images or clips a tokenizer processes at a time."""

import math
from collections.abc import Sequence

import torch

from eltlab.data.images.image_files import CHUNK_BYTES

RECONSTRUCTED = 8  # images that are decoded at a time
ENCODED = 1024  # images that are encoded by a patch codebook at a time, at most
VECTORS_AT_ONCE = 2**13  # the distances from these to all codes stay in the processor's cache


def network_batch(device: torch.device) -> int:
    """Images per batch of a network. With two images of 128x128 pixels, a layer's output stays in a
    CPU's cache; a GPU is faster with more."""
    return 2 if device.type == "cpu" else 64


def clips_per_batch(images: int, shape: Sequence[int]) -> int:
    """How many clips [F, C, H, W] contain this many frames, at least one. For images [C, H, W], all."""
    return max(images // math.prod(shape[:-3]), 1)


def patch_batch(tokens: int) -> int:
    """Images per batch of a patch codebook. A power of two, so that streamed and in-memory data are encoded
    in the same chunks: cdist rounds differently in chunks of other sizes."""
    return min(ENCODED, _power_of_two(VECTORS_AT_ONCE // tokens))


def stream_batch(shape: Sequence[int], tokens: int) -> int:
    """Images or clips that are read at a time to be encoded. Fewer if they are large, because the batches
    that were read ahead wait in memory."""
    return min(ENCODED, max(_power_of_two(CHUNK_BYTES // math.prod(shape)), patch_batch(tokens)))


def _power_of_two(limit: int) -> int:
    """The largest power of two up to limit, at least 1."""
    return 2 ** int(math.log2(max(limit, 1)))
