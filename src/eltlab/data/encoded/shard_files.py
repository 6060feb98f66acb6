"""The files of an encoded set: safetensors, each with the rows of consecutive images."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.files import atomic_path
from eltlab.data.batches import FLIPPED, LABELS
from eltlab.data.encoded.manifest import LOCK, SPLITS, Encoding


def tensor_names(encoding: Encoding) -> list[str]:
    """The tensors of an image, without their FLIPPED twins."""
    if encoding.kind == "tokens":
        return ["ids"]
    return ["mean", "logvar"] if encoding.variance else ["mean"]


def tensor_dtype(encoding: Encoding) -> torch.dtype:
    """float16 for latents, whose rounding error is below a thousandth of their deviation."""
    if encoding.kind == "latents":
        return torch.float16
    assert encoding.codebook is not None
    return torch.int16 if encoding.codebook <= 2**15 else torch.int32


def layout(encoding: Encoding, count: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor in a shard of count images."""
    row = (count, *encoding.shape), tensor_dtype(encoding)
    endings = ("", FLIPPED) if encoding.flips else ("",)
    tensors = {name + ending: row for ending in endings for name in tensor_names(encoding)}
    return tensors | {LABELS: ((count,), torch.int32)}


def list_shards(encoding: Encoding) -> list[tuple[str, str, range]]:
    """(file, split, its images) of every shard, in order."""
    return [
        (f"{split}-{number:05}.safetensors", split, images[first : first + encoding.shard])
        for split in SPLITS
        for images in [range(encoding.counts[split])]
        for number, first in enumerate(images[:: encoding.shard])
    ]


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a whole shard or nothing. Raises UserError if it cannot be written.

    If another process has written it meanwhile, that file stays: a manifest may already have its hash.
    """
    content = save({name: value.contiguous() for name, value in tensors.items()})
    try:
        with atomic_path(path, keep=path.parent / LOCK) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"{path}: not written ({error.strerror}); make room, and run the same command to continue"
        ) from error


def read_shard(path: Path, encoding: Encoding, count: int) -> dict[str, Tensor]:
    """The tensors of a shard, mapped into memory. Raises UserError if it does not have this layout."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise corrupt_shard(path, str(error)) from error
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
    wanted = layout(encoding, count)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            what = f"{name} is {found.get(name, 'missing')}, not {wanted.get(name, 'there')}"
            raise corrupt_shard(path, what)
    return tensors


def corrupt_shard(path: Path, what: str) -> UserError:
    return UserError(f"{path}: a corrupt shard ({what}); delete it, and encode again")
