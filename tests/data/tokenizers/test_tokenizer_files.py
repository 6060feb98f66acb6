"""A tokenizer is saved in one file, which is refused if it is damaged."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from support.tokenizers import NAMES, built, encoded, pictures

from eltlab.common.errors import UserError
from eltlab.data.tokenizers.tokenizer_files import METADATA, load_tokenizer, pack_tokenizer, save_tokenizer


@pytest.mark.parametrize("name", NAMES)
def test_a_tokenizer_is_saved_in_one_file(weight_places, name, tmp_path, monkeypatch):
    tokenizer, images = built(weight_places, name), pictures(3)
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(tokenizer, path)
    # Weights, cache and hub are no longer available.
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("eltlab.data.tokenizers.diffusers_models.find_weights", None)
    again = load_tokenizer(path)
    for key in ("name", "kind", "factor", "channels", "codebook", "hash"):
        assert getattr(again, key) == getattr(tokenizer, key)
    x = encoded(tokenizer, images)
    assert torch.equal(encoded(again, images), x)
    assert torch.equal(again.decode(x), tokenizer.decode(x))


def damaged(weight_places, path: Path, change) -> None:
    tensors, settings = pack_tokenizer(built(weight_places, "kmeans"))
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors, settings)
    save_file(tensors, path, {METADATA: json.dumps(settings)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, settings: tensors["codes"].add_(1e-6),
        lambda tensors, settings: tensors["base.encoder.conv_in.bias"].mul_(-1),
        lambda tensors, settings: tensors.pop("codes"),
        lambda tensors, settings: settings["base"]["config"].update(scaling_factor=0.4),
        lambda tensors, settings: settings.update(hash="0" * 12),
        lambda tensors, settings: settings.pop("hash"),
    ],
    ids=["codes", "weights", "missing", "scale", "hash", "no hash"],
)
def test_a_file_whose_hash_does_not_match_is_refused(weight_places, tmp_path, change):
    path = tmp_path / "tokenizer.safetensors"
    damaged(weight_places, path, lambda tensors, settings: None)
    load_tokenizer(path)
    damaged(weight_places, path, change)
    with pytest.raises(UserError, match=f"^{path}: damaged: .*; make it again$"):
        load_tokenizer(path)


def test_a_file_that_is_not_a_tokenizer_is_refused(weight_places, tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    with pytest.raises(UserError, match=f"^{path}: no such file; "):
        load_tokenizer(path)
    save_tokenizer(built(weight_places, "taesd"), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"^{path}: truncated"):
        load_tokenizer(path)
    for metadata in (None, {METADATA: "{"}, {METADATA: "[1]"}, {METADATA: "1"}):
        save_file({"a": torch.zeros(1)}, path, metadata)
        with pytest.raises(UserError, match=f"^{path}: not written by eltlab; "):
            load_tokenizer(path)
