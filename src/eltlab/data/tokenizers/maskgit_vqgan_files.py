"""Reads checkpoints of MaskGIT's VQGAN, from flax or its PyTorch ports, without running pickled code."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import torch
from safetensors.torch import load
from torch import Tensor

from eltlab.common.errors import UserError, first_line
from eltlab.data.tokenizers.diffusers_models import find_weights, hub_error, weights_error
from eltlab.data.tokenizers.maskgit_vqgan import VQGAN, build_vqgan
from eltlab.data.tokenizers.tokenizer import Tensors

# storage.googleapis.com/maskgit-public/checkpoints, and huggingface.co/fun-research/TiTok
FLAX_FILE, PORT_FILE = "tokenizer_imagenet256_checkpoint", "maskgit-vqgan-imagenet-f16-256.bin"
FIX = f"{FLAX_FILE} of google-research/maskgit, or {PORT_FILE} of the hub's fun-research/TiTok"
MOST_BYTES = 2**29  # over twice the published network; a larger file is not read


def load_vqgan(weights: str, subfolder: str | None) -> VQGAN:
    """The frozen network in a file, or in the PORT_FILE of a repository of the hub. Raises UserError."""
    path = find_weights(weights, subfolder)
    if path is None:
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(weights, PORT_FILE, subfolder=subfolder))
        except Exception as error:  # of the hub client, its HTTP library or the file system
            raise hub_error(weights, error) from None
    try:
        return build_vqgan(read_checkpoint(path))
    except UserError:
        raise
    except Exception as error:  # which error a reader raises depends on the bytes that are wrong
        problem = f"not a complete checkpoint of MaskGIT's VQGAN ({first_line(error)[:120]})"
        raise weights_error(path, problem, FIX) from None


def read_checkpoint(path: Path) -> Tensors:
    """The tensors under the names of VQGAN. Raises UserError, or whatever the reader of its format raises."""
    if not path.is_file():
        raise weights_error(path, "there is no such file", FIX)
    if path.stat().st_size > MOST_BYTES:
        raise weights_error(path, f"larger than {MOST_BYTES / 2**30:g} GiB", FIX)
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):  # a zip: torch.save
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our one-line error says it better
            return torch.load(path, map_location="cpu", weights_only=True)
    if start[8:] == b"{":  # safetensors: eight bytes of length, then JSON
        return load(path.read_bytes())
    return from_flax(path.read_bytes())


ARRAY = 1  # flax/serialization.py: the msgpack extension of an array, (shape, type, bytes)
TYPES = {b"float32": torch.float32, b"float16": torch.float16, b"bfloat16": torch.bfloat16}


def from_flax(content: bytes) -> Tensors:
    """Renames the layers, which flax numbers by kind in the order in which they run."""
    # flax writes neither msgpack arrays (lists become maps) nor maps of thousands of keys.
    tree = msgpack.unpackb(content, ext_hook=_read_array, max_array_len=0, max_map_len=1000)
    params = tree["params"]
    # The decoder has conv_in, conv_out, and a convolution between each two levels.
    convolutions = sum(name.startswith("Conv_") for name in params["decoder"])
    levels = range(convolutions - 1)
    in_encoder = sum(name.startswith("ResBlock_") for name in params["encoder"])
    # The bottom has as many blocks as each level, so they are divided by levels + 1 = convolutions.
    blocks = range(in_encoder // convolutions)

    down = [f"down.{level}.block.{n}" for level in levels for n in blocks]
    up = [f"up.{level}.block.{n}" for level in reversed(levels) for n in blocks]
    bottom = [f"mid.{n}" for n in blocks]
    upsample = [f"up.{level}.upsample_conv" for level in reversed(levels[1:])]
    layers = {
        "encoder": _number(["conv_in", "conv_out"], ["norm_out"], down + bottom),
        "decoder": _number(["conv_in", *upsample, "conv_out"], ["norm_out"], bottom + up),
    }
    in_block = _number(["conv1", "conv2", "nin_shortcut"], ["norm1", "norm2"])
    tensors = {"quantize.embedding.weight": params["quantizer"]["codebook"]}
    for part, names in layers.items():
        for (layer, *inner, leaf), value in _leaves(params[part]):
            name = ".".join([part, names[layer], *(in_block[n] for n in inner)])
            if leaf == "kernel":
                value = value.permute(3, 2, 0, 1)  # HWIO → OIHW
            tensors[f"{name}.{'bias' if leaf == 'bias' else 'weight'}"] = value
    return tensors


def _number(convolutions: list[str], norms: list[str], blocks: Sequence[str] = ()) -> dict[str, str]:
    """flax's name → ours. The layers of each kind are given in the order in which they run."""
    kinds = {"Conv": convolutions, "GroupNorm": norms, "ResBlock": blocks}
    return {f"{kind}_{n}": name for kind, names in kinds.items() for n, name in enumerate(names)}


def _read_array(code: int, data: bytes) -> Tensor:
    if code != ARRAY:
        raise ValueError(f"msgpack extension {code} is not an array")
    shape, kind, values = msgpack.unpackb(data, raw=True)
    return torch.frombuffer(bytearray(values), dtype=TYPES[kind]).reshape(shape)


def _leaves(tree: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for name, inner in tree.items():
        if isinstance(inner, Tensor):
            yield (name,), inner
        else:
            yield from (((name, *names), value) for names, value in _leaves(inner))
