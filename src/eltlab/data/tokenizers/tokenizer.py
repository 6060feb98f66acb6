"""Shared by tokenizers: frozen networks in full precision, clips frame by frame, reconstruction error."""

import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.common.progress import Bar
from eltlab.common.text import example_unit

Tensors = dict[str, Tensor]
Settings = dict[str, Any]  # can be written as JSON
RECONSTRUCTED = 8  # images that are decoded at a time
VECTORS_AT_ONCE = 2**13  # the distances from these to all codes stay in the processor's cache


class Tokenizer(Protocol):
    """Images or clips ↔ ids or latents. hash identifies it."""

    hash: str

    def encode(self, images: Tensor) -> Any:
        """uint8 [N, C, H, W] or [N, F, C, H, W] → ids [N, T], or (mean, log-variance or None) of latents."""

    def decode(self, drawn: Tensor, /) -> Tensor:
        """Ids or latents → uint8 images or clips."""

    def to(self, device: torch.device) -> "Tokenizer":
        """Moves its network to the device and returns itself."""


class FrozenTokenizer(Tokenizer):
    """A pretrained or fitted tokenizer of images.

    factor: pixels per side of one position. channels: of a latent or code. codebook: the number of codes.
    variance: whether encode returns a log-variance. hash: covers all that affects ids, latents and images.
    """

    kind: Literal["latents", "tokens"]
    factor: int
    channels: int
    codebook: int | None = None
    variance = False

    def __init__(self, name: str, network: Any) -> None:
        self.name, self.network = name, network
        self.device = torch.device("cpu")
        self.hash = fingerprint(self.tensors(), self.settings())

    def to(self, device: torch.device | str) -> Self:
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def tensors(self) -> Tensors:
        return self.network.state_dict()

    @abstractmethod
    def settings(self) -> Settings:
        """What `tokenizer_files.unpack_tokenizer` needs besides the tensors."""


def network_batch(device: torch.device) -> int:
    """Images per batch of a network. With two images of 128x128 pixels, a layer's output stays in a
    CPU's cache; a GPU is faster with more."""
    return 2 if device.type == "cpu" else 64


def clips_per_batch(images: int, shape: Sequence[int]) -> int:
    """How many clips [F, C, H, W] contain this many frames, at least one. For images [C, H, W], all."""
    return max(images // math.prod(shape[:-3]), 1)


class PerFrame:
    """Clips uint8 [N, F, C, H, W] ↔ ids [N, F·T] in the order of the frames, or latents [N, F, c, h, w]."""

    def __init__(self, inner: FrozenTokenizer, frames: int) -> None:
        self.inner, self.frames, self.hash = inner, frames, inner.hash

    def to(self, device: torch.device) -> "PerFrame":
        self.inner.to(device)
        return self

    def encode(self, clips: Tensor) -> Any:
        """Ids, or mean and log-variance (or None) of latents."""
        encoded = [self.inner.encode(part) for part in self._split(clips.flatten(0, 1))]
        ids = [part for part in encoded if isinstance(part, Tensor)]
        if ids:
            return torch.cat(ids).reshape(len(clips), -1)
        return tuple(None if parts[0] is None else self._join(parts) for parts in zip(*encoded, strict=True))

    def decode(self, drawn: Tensor, /) -> Tensor:
        ids = drawn.dim() == 2
        frames = drawn.reshape(len(drawn) * self.frames, -1) if ids else drawn.flatten(0, 1)
        return self._join([self.inner.decode(part) for part in self._split(frames)])

    def _split(self, frames: Tensor) -> Sequence[Tensor]:
        return frames.split(network_batch(self.inner.device))

    def _join(self, frames: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(frames)).unflatten(0, (-1, self.frames))


def adapt_to_clips(tokenizer: FrozenTokenizer, frames: int) -> FrozenTokenizer | PerFrame:
    """The tokenizer itself for images (frames = 1), and PerFrame for clips."""
    return tokenizer if frames == 1 else PerFrame(tokenizer, frames)


def freeze(network: nn.Module) -> nn.Module:
    return network.float().eval().requires_grad_(False)


def assign_tensors(network: nn.Module, tensors: Tensors) -> nn.Module:
    """Gives a network from the meta device these tensors in float32, and freezes it. Raises RuntimeError if a
    tensor is missing, unknown or has a different shape."""
    # Contiguous whatever file they come from: PyTorch chooses kernels by the memory layout.
    plain = {name: value.float().contiguous() for name, value in tensors.items()}
    network.load_state_dict(plain, assign=True)
    return freeze(network)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference in float32. With TF32, or inside the autocast of a training step, latents and ids would
    depend on where they are computed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
            torch.inference_mode(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_rgb(images: Tensor, factor: int) -> Tensor:
    """uint8 [N, 1 or 3, H, W] → [N, 3, H, W]. Raises UserError if factor does not divide H and W."""
    side = next((side for side in images.shape[-2:] if side % factor), None)
    if side is not None:
        raise UserError(
            f"data.size={side}: a latent of this tokenizer covers {factor}x{factor} pixels; choose a "
            f"multiple of {factor}"
        )
    # Contiguous like the weights: PyTorch chooses kernels by the memory layout.
    return images.expand(-1, 3, -1, -1).contiguous()


def fingerprint(tensors: Tensors, settings: Settings) -> str:
    """Twelve hex digits of the settings and of all tensors with their names."""
    parts: list[Any] = [json.dumps(settings, sort_keys=True)]
    for name, value in sorted(tensors.items()):
        parts += [name, value.cpu().float().numpy()]
    return digest(*parts)


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
    """Peak signal-to-noise ratio in dB of uint8 images, from the mean squared error over all of them."""
    # Not with torchmetrics, which takes logarithms in float32: that changes the sixth decimal.
    squares = 0  # integers are exact; in parts, because all clips as int32 would not fit in memory
    for part, copy in zip(images.split(RECONSTRUCTED), reconstructed.split(RECONSTRUCTED), strict=True):
        squares += int((part.int() - copy.int()).square().sum(dtype=torch.int64))
    error = squares / images.numel()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
