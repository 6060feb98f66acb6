"""Checkpoints of MaskGIT's VQGAN: flax's of its authors, and PyTorch's of its ports. No pickle runs."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import torch
from safetensors.torch import load
from torch import Tensor

from eltlab.common.errors import UserError, first_line
from eltlab.data.tokenizers.diffusers_models import locate, unfit, unreachable
from eltlab.data.tokenizers.frozen_networks import Tensors
from eltlab.data.tokenizers.maskgit_vqgan import VQGAN, vqgan_of

# storage.googleapis.com/maskgit-public/checkpoints, and huggingface.co/fun-research/TiTok
FLAX_FILE, PORT_FILE = "tokenizer_imagenet256_checkpoint", "maskgit-vqgan-imagenet-f16-256.bin"
MEND = f"{FLAX_FILE} of google-research/maskgit, or {PORT_FILE} of the hub's fun-research/TiTok"
MOST_BYTES = 2**29  # more than twice the published network: what is larger is not read


def load_vqgan(weights: str, subfolder: str | None) -> VQGAN:
    """The frozen network of a file, or of a repository of the hub with a PORT_FILE. Raises UserError."""
    path = locate(weights, subfolder) or _download(weights, subfolder)
    try:
        return vqgan_of(read(path))
    except UserError:
        raise
    except Exception as error:  # what a reader raises depends on which bytes it stumbles over
        problem = f"not a whole checkpoint of MaskGIT's VQGAN ({first_line(error)[:120]})"
        raise unfit(path, problem, MEND) from None


def _download(repository: str, subfolder: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, PORT_FILE, subfolder=subfolder))
    except Exception as error:  # the hub client's, its HTTP library's and the file system's own
        raise unreachable(repository, error) from None


def read(path: Path) -> Tensors:
    """A checkpoint under the names of `vqgan.VQGAN`. Raises UserError, and what its reader raises."""
    if not path.is_file():
        raise unfit(path, "there is no such file", MEND)
    if path.stat().st_size > MOST_BYTES:
        raise unfit(path, f"larger than {MOST_BYTES / 2**30:g} GiB", MEND)
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):  # a zip: torch.save
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what our own one line says better
            return torch.load(path, map_location="cpu", weights_only=True)
    if start[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return load(path.read_bytes())
    return from_flax(path.read_bytes())


# --- flax -----------------------------------------------------------------------------------------

ARRAY = 1  # the msgpack extension of an array: (shape, type, bytes), packed (flax/serialization.py)
TYPES = {b"float32": torch.float32, b"float16": torch.float16, b"bfloat16": torch.bfloat16}
IN_BLOCK = {
    "GroupNorm_0": "norm1",
    "GroupNorm_1": "norm2",
    "Conv_0": "conv1",
    "Conv_1": "conv2",
    "Conv_2": "nin_shortcut",
}


def from_flax(content: bytes) -> Tensors:
    """flax numbers the layers of a kind in the order in which they run; here they get their names."""
    # flax writes lists as maps: what has msgpack's own arrays, or maps of thousands, is not its.
    tree = msgpack.unpackb(content, ext_hook=_array, max_array_len=0, max_map_len=1000)
    params = tree["params"]
    convolutions = sum(name.startswith("Conv_") for name in params["decoder"])
    levels = convolutions - 1  # one goes in and one out, and there is one between two levels
    in_encoder = sum(name.startswith("ResBlock_") for name in params["encoder"])
    blocks = in_encoder // (levels + 1)  # as many at the bottom as at each level

    tensors = {"quantize.embedding.weight": params["quantizer"]["codebook"]}
    for part, place in (("encoder", _encoder_place), ("decoder", _decoder_place)):
        for names, value in _leaves(params[part]):
            layer, *inner, leaf = names
            name = ".".join([part, place(layer, levels, blocks), *(IN_BLOCK[n] for n in inner)])
            tensors[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = (
                value.permute(3, 2, 0, 1) if leaf == "kernel" else value  # HWIO → OIHW
            )
    return tensors


def _array(code: int, data: bytes) -> Tensor:
    if code != ARRAY:
        raise ValueError(f"msgpack extension {code} where an array was expected")
    shape, kind, values = msgpack.unpackb(data, raw=True)
    return torch.frombuffer(bytearray(values), dtype=TYPES[kind]).reshape(shape)


def _leaves(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for name, inner in tree.items():
        if isinstance(inner, Tensor):
            yield (name,), inner
        else:
            yield from (((name, *names), value) for names, value in _leaves(inner))


def _encoder_place(layer: str, levels: int, blocks: int) -> str:
    """ResBlock_5 → down.2.block.1: level by level, then those at the bottom."""
    kind, _, number = layer.rpartition("_")
    if kind != "ResBlock":
        return {"Conv_0": "conv_in", "Conv_1": "conv_out", "GroupNorm_0": "norm_out"}[layer]
    level, block = divmod(int(number), blocks)
    return f"down.{level}.block.{block}" if level < levels else f"mid.{block}"


def _decoder_place(layer: str, levels: int, blocks: int) -> str:
    """ResBlock_3 → up.4.block.1: those at the bottom, then from the lowest level up to level 0."""
    kind, _, number = layer.rpartition("_")
    step, block = divmod(int(number), blocks)
    if kind == "ResBlock":
        return f"up.{levels - step}.block.{block}" if step > 0 else f"mid.{block}"
    ends = {"Conv_0": "conv_in", f"Conv_{levels}": "conv_out", "GroupNorm_0": "norm_out"}
    return ends.get(layer) or f"up.{levels - int(number)}.upsample_conv"
