"""MaskGIT's VQGAN (arXiv 2202.04200): an encoder and a decoder without attention around 1,024 codes.

The layers are those of github.com/google-research/maskgit, maskgit/nets/vqgan_tokenizer.py with
configs/vqgan_config.py: swish, GroupNorm, average pooling, nearest-neighbour upsampling. Their names
are those of its PyTorch ports (huggingface/open-muse, bytedance/1d-tokenizer).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.data.tokenizers.frozen_networks import Tensors, assigned

GROUPS, EPSILON = 32, 1e-6  # flax's defaults, with which the network was trained; PyTorch's is 1e-5


class Shape(NamedTuple):
    """What a checkpoint's tensors say of the network. Published: 128, (128, 128, 256, 256, 512), 2,
    256 and 1,024, for images of 256 and of 512 pixels a side."""

    filters: int  # after the first convolution
    widths: tuple[int, ...]  # of the levels, from full resolution down: each next has half the side
    blocks: int  # residual blocks a level
    channels: int  # of a code
    codes: int


class VQGAN(nn.Module):
    """encoder: images [N, 3, H, W] in [0, 1] → vectors [N, c, H/f, W/f], f = 2^(levels − 1).
    decoder: vectors → images, in [0, 1] but for what it overshoots."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(shape.codes, shape.channels)})

    @property
    def codes(self) -> Tensor:
        """[K, c]"""
        return self.quantize["embedding"].weight  # type: ignore[return-value]


class Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        before = (shape.filters, *shape.widths[:-1])
        self.conv_in = conv(3, shape.filters, 3, bias=False)
        self.down = nn.ModuleList(
            Level(residuals(*widths, shape.blocks), None)
            for widths in zip(before, shape.widths, strict=True)
        )
        self.mid = residuals(shape.widths[-1], shape.widths[-1], shape.blocks)
        self.norm_out = norm(shape.widths[-1])
        self.conv_out = conv(shape.widths[-1], shape.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, blocks in enumerate(self.down):
            if number > 0:
                x = F.avg_pool2d(x, 2)
            x = blocks(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        before = (*shape.widths[1:], shape.widths[-1])  # the level below; the last begins
        self.conv_in = conv(shape.channels, shape.widths[-1], 3)
        self.mid = residuals(shape.widths[-1], shape.widths[-1], shape.blocks)
        self.up = nn.ModuleList(
            Level(
                residuals(*widths, shape.blocks), conv(widths[1], widths[1], 3) if n > 0 else None
            )
            for n, widths in enumerate(zip(before, shape.widths, strict=True))
        )
        self.norm_out = norm(shape.widths[0])
        self.conv_out = conv(shape.widths[0], 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for blocks in reversed(self.up):
            x = blocks(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Level(nn.Module):
    """Residual blocks of one resolution, and in the decoder the step up to the next."""

    def __init__(self, block: nn.ModuleList, upsample_conv: nn.Conv2d | None) -> None:
        super().__init__()
        self.block, self.upsample_conv = block, upsample_conv

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Residual(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), conv(before, width, 3, bias=False)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, bias=False)
        self.nin_shortcut = None if before == width else conv(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        # Of y, where ResNets take x: the original's shortcut does, and was trained so.
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


def residuals(before: int, width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(Residual(before if n == 0 else width, width) for n in range(blocks))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, EPSILON)


def conv(before: int, after: int, size: int, bias: bool = True) -> nn.Conv2d:
    """With stride 1 flax's SAME padding is the same on both sides."""
    return nn.Conv2d(before, after, size, padding=size // 2, bias=bias)


def shape_of(tensors: Tensors) -> Shape:
    """Of a checkpoint under the network's names. Raises KeyError where the tensors are not its own."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down.")})
    blocks = {name.split(".")[4] for name in tensors if name.startswith("encoder.down.0.block.")}
    widths = (tensors[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(levels))
    codes, channels = tensors["quantize.embedding.weight"].shape
    filters = tensors["encoder.conv_in.weight"].shape[0]
    return Shape(filters, tuple(widths), len(blocks), channels, codes)


def vqgan_of(tensors: Tensors) -> VQGAN:
    """The frozen network. Raises KeyError, ValueError or RuntimeError where the tensors do not fit."""
    with torch.device("meta"):
        network = VQGAN(shape_of(tensors))
    return assigned(network, tensors)  # type: ignore[return-value]
