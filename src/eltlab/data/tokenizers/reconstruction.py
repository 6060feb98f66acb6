"""Encodes and decodes images, and measures what is lost."""

import math

import torch
from torch import Tensor

from eltlab.common.progress import Bar
from eltlab.common.text import example_unit
from eltlab.data.tokenizers.tokenizer import RECONSTRUCTED, Tokenizer, clips_per_batch


def reconstruct(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """uint8 images or clips, encoded and decoded. Latents are decoded from their mean."""
    shape = images.shape[1:]
    parts, done = [], 0
    with Bar("reconstruct", len(images), unit=example_unit(shape)) as bar:
        for part in images.split(clips_per_batch(RECONSTRUCTED, shape)):
            encoded = tokenizer.encode(part)
            parts.append(tokenizer.decode(encoded if isinstance(encoded, Tensor) else encoded[0]))
            done += len(part)
            bar.update(done)
    return torch.cat(parts)


def psnr(images: Tensor, reconstructed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images, from the mean squared error over all of them.

    Not by torchmetrics: it takes logarithms in float32, which changes the sixth decimal.
    """
    squares = 0  # integers are exact; in parts, because all clips as int32 would not fit in memory
    for part, copy in zip(images.split(RECONSTRUCTED), reconstructed.split(RECONSTRUCTED), strict=True):
        squares += int((part.int() - copy.int()).square().sum(dtype=torch.int64))
    error = squares / images.numel()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
