"""MaskGIT's VQGAN in NumPy, as its authors wrote it for flax: NHWC, HWIO kernels, numbered layers.

After google-research/maskgit, maskgit/nets/vqgan_tokenizer.py and layers.py.
"""

from collections import Counter

import msgpack
import numpy as np


class Flax:
    """Layers that are numbered by kind in the order in which they are called.

    With a generator it creates the requested parameters; without one, it reads them from tree.
    """

    def __init__(self, tree: dict, rng: np.random.Generator | None = None) -> None:
        self.tree, self.rng, self.counts = tree, rng, Counter()

    def layer(self, kind: str) -> dict:
        name = f"{kind}_{self.counts[kind]}"
        self.counts[kind] += 1
        return self.tree.setdefault(name, {}) if self.rng else self.tree[name]

    def array(self, layer: dict, name: str, *shape: int) -> np.ndarray:
        if self.rng:
            layer[name] = self.rng.normal(0.1, 0.3, shape).astype(np.float32)
        assert layer[name].shape == shape
        return layer[name]

    def conv(self, x: np.ndarray, width: int, size: int, bias: bool = True) -> np.ndarray:
        layer = self.layer("Conv")
        kernel = self.array(layer, "kernel", size, size, x.shape[-1], width)
        edge = size // 2
        padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        _, height, across, _ = x.shape
        y = sum(
            padded[:, i : i + height, j : j + across] @ kernel[i, j] for i in range(size) for j in range(size)
        )
        return y + self.array(layer, "bias", width) if bias else y

    def norm(self, x: np.ndarray) -> np.ndarray:
        layer, (n, h, w, c) = self.layer("GroupNorm"), x.shape
        groups = x.reshape(n, h * w, 32, c // 32)
        mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
        normal = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        return normal * self.array(layer, "scale", c) + self.array(layer, "bias", c)

    def block(self, x: np.ndarray, width: int) -> np.ndarray:
        inner = Flax(self.layer("ResBlock"), self.rng)
        y = inner.conv(swish(inner.norm(x)), width, 3, bias=False)
        y = inner.conv(swish(inner.norm(y)), width, 3, bias=False)
        if x.shape[-1] == width:
            return y + x
        return y + inner.conv(y, width, 1, bias=False)


def swish(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def encode(net: Flax, x: np.ndarray, filters: int, multipliers: list, blocks: int, c: int) -> np.ndarray:
    """[N, H, W, 3] in [0, 1] → [N, h, w, c]"""
    x = net.conv(x, filters, 3, bias=False)
    for level, multiplier in enumerate(multipliers):
        for _ in range(blocks):
            x = net.block(x, filters * multiplier)
        if level < len(multipliers) - 1:
            n, h, w, width = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, width).mean((2, 4))
    for _ in range(blocks):
        x = net.block(x, x.shape[-1])
    return net.conv(swish(net.norm(x)), c, 1)


def decode(net: Flax, x: np.ndarray, filters: int, multipliers: list, blocks: int) -> np.ndarray:
    """[N, h, w, c] → [N, H, W, 3]"""
    x = net.conv(x, filters * multipliers[-1], 3)
    for _ in range(blocks):
        x = net.block(x, x.shape[-1])
    for level in reversed(range(len(multipliers))):
        for _ in range(blocks):
            x = net.block(x, filters * multipliers[level])
        if level > 0:
            x = net.conv(x.repeat(2, 1).repeat(2, 2), x.shape[-1], 3)
    return net.conv(swish(net.norm(x)), 3, 3)


def to_bytes(tree: dict) -> bytes:
    """What flax.serialization.to_bytes writes: arrays as msgpack's extension 1."""

    def extension(array: np.ndarray) -> msgpack.ExtType:
        packed = (array.shape, array.dtype.name, array.tobytes())
        return msgpack.ExtType(1, msgpack.packb(packed, use_bin_type=True))

    return msgpack.packb(tree, default=extension, strict_types=True)
