"""Checkpoints of the VQGAN in every format are read, and strange or malicious files are refused."""

import io
import os
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
import support.vqgan_reference as reference
import torch
from safetensors.torch import save_file
from support.tokenizers import built, refused

from eltlab.config.schema import TokenizerConfig
from eltlab.data.tokenizers.tokenizer_files import build_tokenizer


def test_vqgan_checkpoints_of_all_formats_give_the_same_tokenizer(weight_places, tmp_path):
    original = built(weight_places, "maskgit_vqgan")
    tensors = original.network.state_dict()
    # As the ports name them (huggingface/open-muse, muse/modeling_maskgit_vqgan.py).
    assert {
        "encoder.down.2.block.0.nin_shortcut.weight",
        "encoder.mid.1.norm2.bias",
        "decoder.up.2.upsample_conv.bias",
        "decoder.up.1.block.0.nin_shortcut.weight",
        "quantize.embedding.weight",
    } < set(tensors)
    torch.save(tensors, tmp_path / "port.bin")
    save_file(tensors, tmp_path / "port.safetensors")
    for name in ("port.bin", "port.safetensors"):
        config = TokenizerConfig("maskgit_vqgan", str(tmp_path), name)
        assert build_tokenizer(config, None).hash == original.hash


class Malice:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def _flax(change):
    """A function that makes a checkpoint with a changed tree of parameters."""

    def content(flax: dict) -> bytes:
        params = pickle.loads(pickle.dumps(flax["params"]))
        change(params)
        return reference.to_bytes({"params": params})

    return content


def _torch(thing):
    def content(flax: dict) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    return content


def _array(shape, kind, values) -> bytes:
    array = msgpack.ExtType(1, msgpack.packb((shape, kind, values)))
    return msgpack.packb({"params": {"encoder": {}, "decoder": {}, "quantizer": array}})


STRANGE = {
    "nothing": lambda flax_weights: b"",
    "text": lambda flax_weights: b"<html>404</html>",
    "truncated": lambda flax_weights: reference.to_bytes(flax_weights)[:-9],
    "more behind it": lambda flax_weights: reference.to_bytes(flax_weights) + b"\x00",
    "only optimizer": lambda flax_weights: reference.to_bytes({"opt_state": {}}),
    "a number": lambda flax_weights: b"\x07",
    "a list of numbers": lambda flax_weights: msgpack.packb([1] * 1000),
    "nested without end": lambda flax_weights: b"\x91" * 100_000,
    "an array longer than its bytes": lambda flax_weights: _array((9, 9), "float32", b"1234"),
    "an array of objects": lambda flax_weights: _array((1,), "object", b"12345678"),
    "an array of strange shape": lambda flax_weights: _array("1", "float32", b"1234"),
    "no encoder": _flax(lambda params: params.pop("encoder")),
    "a layer missing": _flax(lambda params: params["decoder"].pop("ResBlock_1")),
    "a layer too many": _flax(lambda params: params["encoder"].update(Conv_2=params["encoder"]["Conv_1"])),
    "learned downsampling": _flax(
        lambda params: params["encoder"].update(Conv_9=params["encoder"]["Conv_0"])
    ),
    "another shape": _flax(lambda params: params["quantizer"].update(codebook=np.ones((12, 5)))),
    "malice": _torch({"a": Malice()}),
    "a list": _torch([torch.zeros(1)]),
    "other tensors": _torch({"a": torch.zeros(1)}),
    "pickle": lambda flax_weights: pickle.dumps(Malice()),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_checkpoint_of_another_network_is_refused(kind, flax_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given"
    path.write_bytes(STRANGE[kind](flax_weights))
    refused(
        TokenizerConfig("maskgit_vqgan", str(path)),
        f"tokenizer.weights={path}: ",
        "give tokenizer_imagenet256_checkpoint",
    )
    assert not Path("it-ran").exists()


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "given"
    with path.open("wb") as file:
        file.truncate(2**29 + 1)  # sparse: takes no room
    refused(TokenizerConfig("maskgit_vqgan", str(path)), "larger than 0.5 GiB")
    refused(TokenizerConfig("maskgit_vqgan", str(tmp_path)), "there is no such file")
