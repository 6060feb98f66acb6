"""Files of tensors are read whole, or refused by name with what to do."""

import pytest
import torch
from safetensors.torch import save_file
from support.errors import fails

from eltlab.common.files import write_atomic
from eltlab.common.tensor_files import read_tensors

TENSORS = {
    "weight": torch.randn(3, 5),
    "half": torch.randn(2, 2).to(torch.bfloat16),
    "ids": torch.arange(6, dtype=torch.int16).view(2, 3),
    "empty": torch.zeros(0, 4),
}


def test_tensors_and_metadata_are_as_written(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path, {"kind": "latents", "text": '{"a": "ä"}'})
    tensors, metadata = read_tensors(path, "encode again")
    assert tensors.keys() == TENSORS.keys() and metadata == {"kind": "latents", "text": '{"a": "ä"}'}
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)


def test_a_file_without_metadata_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "x")
    assert read_tensors(tmp_path / "x", "encode again")[1] == {}


def test_tensors_stay_after_the_file_is_replaced(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    tensors, _ = read_tensors(path, "encode again")
    write_atomic(path, bytes(path.stat().st_size))
    assert torch.equal(tensors["weight"], TENSORS["weight"])


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "text", "cut", "more", "header"])
def test_a_damaged_file_is_named_with_the_fix(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.unlink()
    contents = {"empty": b"", "text": b"<html>404</html>", "cut": content[:-1], "more": content + b"x"}
    contents["header"] = content[:9] + b"!" + content[10:]
    if damage == "folder":
        path.mkdir()
    elif damage in contents:
        path.write_bytes(contents[damage])
    message = fails(read_tensors, path, "encode again")
    assert message == f"{path}: truncated or not a safetensors file; encode again"
