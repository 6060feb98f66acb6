"""Files of published weights: where a package has them, errors about them, and hashes of networks."""

import importlib.util
import textwrap
from pathlib import Path

from torch import Tensor, nn

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError

Tensors = dict[str, Tensor]


def installed_file(package: str, file: str) -> Path | None:
    """A file inside a package, which is never imported; None if the package is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / file


def unusable(path: Path, reason: str | RuntimeError, fix: str, network: str = "") -> UserError:
    """The error about a weights file. reason: text, or what load_state_dict of the network raised."""
    if isinstance(reason, RuntimeError):
        problem = textwrap.shorten(str(reason).partition(":")[2], 100)
        reason = f"not the tensors of {network} ({problem})"
    return UserError(f"metrics.weights={path}: {reason}; give {fix}")


def network_hash(network: nn.Module, exclude: tuple[str, ...] = ()) -> str:
    """A hash of a network's tensors, without those whose names start with one of `exclude`."""
    parts = []
    for name, value in sorted(network.state_dict().items()):
        if not name.startswith(exclude) and not name.endswith("num_batches_tracked"):
            parts += [name, value.numpy()]
    return digest(*parts)
