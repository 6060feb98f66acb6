"""The folder of an encoded set: started, resumed by the same command only, and finished by a manifest."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from support.encoded_sets import asked, contents, make, on
from support.errors import fails

from eltlab.data.build import build_data
from eltlab.data.encoded import shard_writing
from eltlab.data.encoded.manifest import TOKENIZER, read_manifest
from eltlab.data.tokenizers import kmeans
from eltlab.evaluation.encode_set import encode
from eltlab.runs.compose_config import compose_encode


def encoded_as(monkeypatch, change) -> None:
    """Changes every tensor that the tokenizer makes."""
    real = shard_writing.encode_batch

    def encode_batch(*given):
        return {name: change(value) for name, value in real(*given).items()}

    monkeypatch.setattr(shard_writing, "encode_batch", encode_batch)


def test_a_shard_that_is_encoded_again_is_in_the_manifest_with_its_new_hash(
    photo_folder, weights_folder, copied_set, monkeypatch
) -> None:
    path, before = copied_set / "train-00002.safetensors", read_manifest(copied_set)
    path.unlink()
    encoded_as(monkeypatch, lambda value: value * 1.25)  # as on another device
    after = make(photo_folder, weights_folder, copied_set)
    assert after.id != before.id
    assert after.shards["train"][2].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert after.shards["test"] == before.shards["test"]
    build_data(on(copied_set))
    # All other shards must keep their hashes, even if encode was stopped in between.
    path.unlink()
    other = copied_set / "test-00001.safetensors"
    content = bytearray(other.read_bytes())
    content[-3] ^= 1
    other.write_bytes(content)
    for _ in range(2):
        assert f"{other}: a corrupt shard (its hash differs" in fails(
            make, photo_folder, weights_folder, copied_set
        )
        assert "run the same encode command to finish it" in fails(on, copied_set)
    other.unlink()
    assert make(photo_folder, weights_folder, copied_set).shards["test"][1] != after.shards["test"][1]
    build_data(on(copied_set))


def test_a_damaged_manifest_is_written_again(photo_folder, weights_folder, copied_set) -> None:
    before = read_manifest(copied_set)
    path = copied_set / "manifest.json"
    path.write_text(path.read_text()[:100])
    assert "encode the images again" in fails(on, copied_set)
    assert make(photo_folder, weights_folder, copied_set) == before


def test_values_that_cannot_be_trained_on_make_no_manifest(
    photo_folder, weights_folder, tmp_path, monkeypatch
) -> None:
    encoded_as(monkeypatch, lambda value: value * torch.inf)
    assert "is not finite everywhere" in fails(make, photo_folder, weights_folder, tmp_path / "set")
    assert not (tmp_path / "set/manifest.json").exists()


def test_a_deleted_shard_is_encoded_again(photo_folder, weights_folder, copied_set) -> None:
    path = copied_set / "train-00002.safetensors"
    content = path.read_bytes()
    path.unlink()
    assert f"{path}: missing" in fails(build_data, on(copied_set))
    make(photo_folder, weights_folder, copied_set)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["data.size=8"], "shape, source"),
        (["flips=false"], "flips"),
        (["shard=6"], "shard"),
    ],
)
def test_a_different_encoding_does_not_continue_in_the_folder(
    changed, named, photo_folder, weights_folder, latent_set
) -> None:
    assert f"contains a different encoding ({named} differ)" in fails(
        make, photo_folder, weights_folder, latent_set, *changed
    )


def test_a_missing_or_damaged_tokenizer_is_written_again(photo_folder, weights_folder, copied_set) -> None:
    path = copied_set / TOKENIZER
    content = path.read_bytes()
    for spoil in (path.unlink, lambda: path.write_bytes(content[:-9])):
        spoil()
        make(photo_folder, weights_folder, copied_set)
        assert path.read_bytes() == content


def test_a_set_with_fitted_codes_is_resumed_without_the_cache(
    photo_folder, weights_folder, token_set, tmp_path, monkeypatch
) -> None:
    out = Path(shutil.copytree(token_set, tmp_path / "set"))
    (out / "test-00000.safetensors").unlink()
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    real = kmeans.fit_means  # codes fitted on another processor may differ
    monkeypatch.setattr(kmeans, "fit_means", lambda *given: real(*given) + 1e-3)
    make(photo_folder, weights_folder, out, tokenizer="kmeans")
    assert contents(out) == contents(token_set)
    eleven = asked(photo_folder, weights_folder, out, "tokenizer.codes=11", tokenizer="kmeans")
    message = fails(encode, compose_encode(eleven), out)
    assert "contains a different encoding (codebook, tokenizer differ)" in message


def test_a_different_tokenizer_does_not_continue_in_the_folder(
    photo_folder, weights_folder, latent_set
) -> None:
    taesd = asked(photo_folder, weights_folder, latent_set, tokenizer="taesd")
    message = fails(encode, compose_encode(taesd), latent_set)
    assert "contains a different encoding (variance, tokenizer differ)" in message


def test_different_images_do_not_continue_in_the_folder(
    photo_folder, weights_folder, latent_set, tmp_path
) -> None:
    fewer = Path(shutil.copytree(photo_folder, tmp_path / "fewer"))
    next((fewer / "val").rglob("*.jpeg")).unlink()
    assert "(counts, source differ)" in fails(make, fewer, weights_folder, latent_set)


def test_a_folder_with_other_files_is_refused(photo_folder, weights_folder, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert "contains files that are not an encoded set" in fails(make, photo_folder, weights_folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", ".lock"}


def test_a_folder_with_only_the_first_file_is_resumed(
    photo_folder, weights_folder, latent_set, tmp_path
) -> None:
    out = tmp_path / "set"
    out.mkdir()
    shutil.copy(latent_set / TOKENIZER, out)
    (out / ".encoding.json.host.1.tmp").write_text("{")
    make(photo_folder, weights_folder, out)
    assert contents(out) == contents(latent_set)
