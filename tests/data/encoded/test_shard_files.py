"""Shards are written whole or not at all, and damaged ones are refused by name."""

import hashlib
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import typed_in
from support.encoded_sets import asked, make, on
from support.errors import fails

from eltlab import encode
from eltlab.data.build import build_data
from eltlab.data.encoded import shard_files
from eltlab.data.encoded.manifest import TOKENIZER, read_manifest


def test_a_shard_that_another_process_finished_first_stays(latent_set, tmp_path) -> None:
    path = tmp_path / "train-00000.safetensors"
    held = load_file(latent_set / path.name)
    shard_files.write_shard(path, held)
    shard_files.write_shard(path, {name: value + 1 for name, value in held.items()})
    assert torch.equal(load_file(path)["mean"], held["mean"])


def test_a_new_set_is_read_once(photo_folder, weights_folder, tmp_path, monkeypatch) -> None:
    hashed: list[str] = []
    real = hashlib.file_digest

    def file_digest(file, name):
        hashed.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    manifest = make(photo_folder, weights_folder, tmp_path / "set")
    build_data(on(tmp_path / "set"))
    assert sorted(hashed) == sorted(s.file for of in manifest.shards.values() for s in of)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file can become larger than this many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_no_partial_shard(
    photo_folder, weights_folder, tmp_path, monkeypatch, capsys
) -> None:
    out = tmp_path / "set"
    again = photo_folder, weights_folder, out, "shard=64", "data.size=64"
    with small_disk(300_000):  # the tokenizer's file fits, a shard of 36 images does not
        assert typed_in(encode, asked(*again), monkeypatch) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "train-00000.safetensors: not written (File too large); free disk space" in error
    assert {path.name for path in out.iterdir()} == {".lock", "encoding.json", TOKENIZER}
    assert make(*again).shards["train"][0].images == 36


def replace_tensors(root: Path, **tensors: torch.Tensor) -> None:
    """Replaces tensors of a shard and updates its hash in the manifest."""
    path = root / "train-00001.safetensors"
    save_file(load_file(path) | tensors, path)
    manifest = read_manifest(root)
    shard = manifest.shards["train"][1]
    manifest.shards["train"][1] = shard._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    manifest.write()


def test_a_truncated_shard_is_named(copied_set) -> None:
    path = copied_set / "train-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: truncated" in fails(build_data, on(copied_set))


def test_a_shard_with_one_bit_flipped_is_named(copied_set) -> None:
    build_data(on(copied_set))  # checked once; must be checked again after a file changes
    path = copied_set / "test-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert f"{path}: a corrupt shard (its hash differs" in fails(build_data, on(copied_set))


def test_a_shard_of_another_shape_is_named(copied_set) -> None:
    replace_tensors(copied_set, mean=torch.zeros(5, 2, 8, 7, dtype=torch.float16))
    message = fails(build_data, on(copied_set))
    assert "train-00001.safetensors: a corrupt shard (mean is ((5, 2, 8, 7), torch.float16)" in message


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_named(label, copied_set) -> None:
    replace_tensors(copied_set, labels=torch.tensor([0, 1, 2, 0, label], dtype=torch.int32))
    message = fails(build_data, on(copied_set))
    assert "train-00001.safetensors: a corrupt shard (labels from" in message
    assert "not 0 to 2" in message


def test_ids_out_of_range_and_infinite_latents_are_named(token_set, copied_set, tmp_path) -> None:
    other = Path(shutil.copytree(token_set, tmp_path / "tokens"))
    ids = torch.zeros(5, 64, dtype=torch.int16)
    ids[2, 2] = 12
    replace_tensors(other, ids_flipped=ids)
    message = fails(build_data, on(other, kind="tokens"))
    assert "ids_flipped from 0 to 12, not 0 to 11" in message
    replace_tensors(copied_set, mean=torch.full((5, 2, 8, 8), torch.inf, dtype=torch.float16))
    assert "mean is not finite everywhere" in fails(build_data, on(copied_set))


def test_verify_reads_every_shard_again(
    photo_folder, weights_folder, copied_set, monkeypatch, capsys
) -> None:
    read: list[str] = []
    real = shard_files.check_shard
    monkeypatch.setattr(
        shard_files,
        "check_shard",
        lambda root, shard, e: (read.append(shard.file), real(root, shard, e)),
    )
    make(photo_folder, weights_folder, copied_set)
    make(photo_folder, weights_folder, copied_set)
    assert len(read) == len(set(read)) == 11  # the second call reads no shard: the set is known
    make(photo_folder, weights_folder, copied_set, "verify=true")
    assert len(read) == 22
