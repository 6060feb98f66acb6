"""MaskGIT's VQGAN (arXiv 2202.04200): an encoder and a decoder without attention around 1,024 codes.

The layers follow github.com/google-research/maskgit, maskgit/nets/vqgan_tokenizer.py with
configs/vqgan_config.py: swish, GroupNorm, average pooling, nearest-neighbour upsampling. Their names
follow its PyTorch ports (huggingface/open-muse, bytedance/1d-tokenizer).
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eltlab.data.tokenizers.tokenizer import Tensors, assign_tensors

norm = partial(nn.GroupNorm, 32, eps=1e-6)  # flax's defaults; PyTorch's epsilon is 1e-5
conv = partial(nn.Conv2d, padding="same")


class Shape(NamedTuple):
    """Published, for 256 and 512 pixels per side: Shape(128, (128, 128, 256, 256, 512), 2, 256, 1024)."""

    filters: int  # after the first convolution
    widths: tuple[int, ...]  # of the levels, from full resolution down; each level halves the side
    blocks: int  # residual blocks per level
    channels: int  # of a code
    codes: int


class VQGAN(nn.Module):
    """encoder: images [N, 3, H, W] in [0, 1] → vectors [N, c, H/f, W/f], f = 2^(levels − 1).
    decoder: vectors → images, about in [0, 1]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(shape), Decoder(shape)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(shape.codes, shape.channels)})


class Encoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        before = (shape.filters, *shape.widths[:-1])
        self.conv_in = conv(3, shape.filters, 3, bias=False)
        self.down: Any = nn.ModuleList(
            nn.ModuleDict({"block": residuals(*widths, shape.blocks)})
            for widths in zip(before, shape.widths, strict=True)
        )
        self.mid = residuals(shape.widths[-1], shape.widths[-1], shape.blocks)
        self.norm_out = norm(shape.widths[-1])
        self.conv_out = conv(shape.widths[-1], shape.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level["block"](x if number == 0 else F.avg_pool2d(x, 2))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        before = (*shape.widths[1:], shape.widths[-1])  # the deepest level runs first
        self.conv_in = conv(shape.channels, shape.widths[-1], 3)
        self.mid = residuals(shape.widths[-1], shape.widths[-1], shape.blocks)
        levels = [
            nn.ModuleDict({"block": residuals(*widths, shape.blocks)})
            for widths in zip(before, shape.widths, strict=True)
        ]
        for level, width in list(zip(levels, shape.widths, strict=True))[1:]:
            level["upsample_conv"] = conv(width, width, 3)
        self.up: Any = nn.ModuleList(levels)
        self.norm_out = norm(shape.widths[0])
        self.conv_out = conv(shape.widths[0], 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level["block"](x)
            if "upsample_conv" in level:
                x = level["upsample_conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class Residual(nn.Module):
    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before), conv(before, width, 3, bias=False)
        self.norm2, self.conv2 = norm(width), conv(width, width, 3, bias=False)
        self.nin_shortcut = None if before == width else conv(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        # ResNets apply the shortcut to x. The original applies it to y, and was trained that way.
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


def residuals(before: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(before if n == 0 else width, width) for n in range(blocks)))


def build_vqgan(tensors: Tensors) -> VQGAN:
    """A frozen network of these tensors. Raises KeyError, ValueError or RuntimeError if they do not fit."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down.")})
    blocks = {name.split(".")[4] for name in tensors if name.startswith("encoder.down.0.block.")}
    widths = (tensors[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(levels))
    codes, channels = tensors["quantize.embedding.weight"].shape
    filters = tensors["encoder.conv_in.weight"].shape[0]
    with torch.device("meta"):
        network = VQGAN(Shape(filters, tuple(widths), len(blocks), channels, codes))
    return assign_tensors(network, tensors)  # type: ignore[return-value]
