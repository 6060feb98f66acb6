"""Every image of a set is encoded once, as its tokenizer encodes it."""

import torch
from safetensors.torch import load_file
from support.encoded_sets import make, on

from eltlab.data.encoded.manifest import TOKENIZER, read_manifest
from eltlab.data.image_sources import load_source_splits
from eltlab.data.tokenizers.tokenizer_files import load_tokenizer


def test_a_set_contains_each_image_as_the_tokenizer_encodes_it(photo_folder, latent_set) -> None:
    manifest = read_manifest(latent_set)
    splits = dict(zip(("train", "test"), load_source_splits(on(latent_set)), strict=True))
    tokenizer = load_tokenizer(latent_set / TOKENIZER)
    for split, files in manifest.shards.items():
        assert [file.images for file in files] == [5] * (len(splits[split]) // 5) + [len(splits[split]) % 5]
        held = [load_file(latent_set / file.file) for file in files]
        pixels = splits[split].subset(None).images
        for ending, seen in (("", pixels), ("_flipped", pixels.flip(-1))):
            mean, logvar = tokenizer.encode(seen)
            for name, value in (("mean", mean), ("logvar", logvar)):
                found = torch.cat([shard[name + ending] for shard in held])
                assert found.dtype == torch.float16
                torch.testing.assert_close(found.float(), value, atol=2e-3, rtol=2e-3)
        labels = torch.cat([shard["labels"] for shard in held])
        assert labels.tolist() == splits[split].labels.tolist()
    assert manifest.encoding.classes == sorted(path.name for path in (photo_folder / "train").iterdir())
    assert manifest.encoding.shape == [2, 8, 8] and manifest.encoding.variance


def test_tokens_are_ids_of_the_fitted_codes(token_set) -> None:
    manifest = read_manifest(token_set)
    tokenizer = load_tokenizer(token_set / TOKENIZER)
    pixels = load_source_splits(on(token_set, kind="tokens"))[1].subset(None).images
    held = [load_file(token_set / file.file) for file in manifest.shards["test"]]
    assert held[0]["ids"].dtype == torch.int16
    assert torch.equal(torch.cat([shard["ids"] for shard in held]).long(), tokenizer.encode(pixels))
    mirrored = torch.cat([shard["ids_flipped"] for shard in held]).long()
    assert torch.equal(mirrored, tokenizer.encode(pixels.flip(-1)))
    assert manifest.encoding.codebook == 12 and manifest.encoding.shape == [64]


def test_the_same_command_encodes_nothing_twice(photo_folder, weights_folder, latent_set, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in latent_set.glob("*.safetensors")}
    make(photo_folder, weights_folder, latent_set)
    assert "encoded" not in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in latent_set.glob("*.safetensors")}
