"""A split of an encoded set stays in its files or is copied to memory, and comes with its tokenizer."""

import torch
from support.encoded_sets import CPU, on
from support.errors import fails

from eltlab.common import ranks
from eltlab.data.build import build_data
from eltlab.data.encoded.manifest import TOKENIZER, read_manifest


def test_a_set_that_is_too_large_stays_in_its_files(latent_set, monkeypatch) -> None:
    config = on(latent_set)
    data = build_data(config)
    assert data.batches(config, 0, CPU).in_memory
    size = data.train.nbytes(flip=False)
    assert size == sum(t.nbytes for t in data.train.rows(CPU, False, True).values())
    monkeypatch.setattr("eltlab.data.encoded.encoded_split.physical_memory", lambda: 4 * size)
    assert data.batches(config, 0, CPU).in_memory
    monkeypatch.setattr(ranks, "local_world_size", lambda: 2)  # each process has a copy in the same memory
    assert not data.batches(config, 0, CPU).in_memory
    monkeypatch.undo()
    monkeypatch.setattr("eltlab.data.encoded.encoded_split.physical_memory", lambda: 4 * size - 4)
    assert not data.batches(config, 0, CPU).in_memory


def test_a_set_is_copied_to_the_device_file_by_file(latent_set, monkeypatch) -> None:
    mapped = build_data(on(latent_set)).train.tensors["mean"]
    monkeypatch.setattr(torch, "cat", None)
    assert torch.equal(mapped.load(CPU), mapped[torch.arange(36)])
    assert mapped.load(torch.device("meta")).shape == (36, 2, 8, 8)


def test_a_manifest_of_another_tokenizer_is_refused(copied_set) -> None:
    """The manifest's own id is right, but the tokenizer next to it has a different hash."""
    manifest = read_manifest(copied_set)
    manifest.encoding.tokenizer["hash"] = "0" * 12
    manifest.write()
    assert f"{copied_set / TOKENIZER}: holds tokenizer" in fails(build_data, on(copied_set))


def test_a_damaged_tokenizer_is_named(copied_set) -> None:
    path = copied_set / TOKENIZER
    path.write_bytes(path.read_bytes()[:-10])
    assert f"{path}: truncated" in fails(build_data, on(copied_set))


def test_a_latent_is_the_same_sample_in_the_whole_split_and_in_a_part(latent_set) -> None:
    whole = build_data(on(latent_set)).train
    part = whole.part(torch.tensor([1, 5, 20, 35]))
    assert torch.equal(part[[0, 2, 3]], whole[[1, 20, 35]])
    inner = part.part(torch.tensor([1, 3]))
    assert torch.equal(inner[[0, 1]], whole[[5, 35]])
    assert torch.equal(inner.tensors["mean"].load(CPU), whole.tensors["mean"][torch.tensor([5, 35])])
