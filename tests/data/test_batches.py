"""Batches are a function of the seed and the step, from memory and from files, whole and in slices."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.digits import DIGITS
from support.encoded_sets import CPU, on
from support.image_files import small

from eltlab.common.seeds import BatchSlice
from eltlab.data.batches import FLIPPED, BatchLoader, batch_indices, draw_flips
from eltlab.data.build import build_data
from eltlab.data.images.image_files import ImageFiles
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers.patch_codebook import encode_set, fit_codebook

# --- which examples are in a batch ----------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 100))
def test_every_epoch_visits_each_example_once(seed, size, batch_size):
    """Epochs are concatenated: batches cross their ends, and may be larger than the set."""
    steps = math.ceil(3 * size / batch_size)
    batches = [batch_indices(seed, step, batch_size, size) for step in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    for epoch in torch.cat(batches)[: 3 * size].split(size):
        assert epoch.sort().values.tolist() == list(range(size))


@given(st.integers(0, 5), st.integers(1, 60), st.permutations(range(12)))
def test_batches_are_a_function_of_seed_and_step(seed, batch_size, order):
    straight = {step: batch_indices(seed, step, batch_size, 37).tolist() for step in range(12)}
    torch.manual_seed(len(order))
    assert {step: batch_indices(seed, step, batch_size, 37).tolist() for step in order} == straight


def test_epochs_and_seeds_have_different_orders():
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    other = batch_indices(1, 0, 100, 100)
    straight = torch.arange(100)
    assert not any(torch.equal(a, b) for a, b in [(first, second), (first, other), (first, straight)])


def test_a_resumed_loader_continues_where_it_stopped():
    inputs, labels = torch.randn(30, 2), torch.arange(30)
    split = {"mean": inputs, "labels": labels}
    whole = list(BatchLoader(split, 8, seed=2, start=0, stop=10))
    rest = BatchLoader(split, 8, seed=2, start=6, stop=10)
    assert len(rest) == 4 == len(list(rest))
    for (x, y), (x_whole, y_whole) in zip(rest, whole[6:], strict=True):
        assert torch.equal(x, x_whole) and torch.equal(y, y_whole)
        assert torch.equal(x, inputs[y])  # inputs and labels stay together


def test_batches_are_those_of_version_0_1_0():
    """So a run that was started with it resumes with the same batches."""
    known = {(0, 0): [557, 442, 750, 315], (0, 11): [525, 1120, 1081, 778], (7, 100): [64, 1134]}
    for (seed, step), first in known.items():
        assert batch_indices(seed, step, 128, 1442)[: len(first)].tolist() == first


def test_batches_of_images_are_scaled(digits):
    train, _ = digits
    batches = BatchLoader({"images": train.images, "labels": train.labels}, 32, seed=0, start=0, stop=3)
    for step, (x, y) in enumerate(batches):
        indices = batch_indices(0, step, 32, len(train))
        assert torch.equal(x, to_float(train.images)[indices]) and x.dtype == torch.float32
        assert torch.equal(y, train.labels[indices])


# --- mirrored images ------------------------------------------------------------------------------


def test_about_half_of_a_batch_is_mirrored_by_seed_and_step():
    drawn = torch.stack([draw_flips(3, step, 500) for step in range(20)])
    assert 0.47 < drawn.float().mean() < 0.53
    assert torch.equal(drawn[7], draw_flips(3, 7, 500))
    assert len({tuple(row.tolist()) for row in [*drawn, draw_flips(4, 0, 500)]}) == 21


def test_the_drawn_images_are_mirrored(digits):
    train, _ = digits
    split = {"images": train.images, "labels": train.labels}
    straight = BatchLoader(split, 50, seed=1, start=2, stop=5)
    flipped = BatchLoader(split, 50, seed=1, start=2, stop=5, flip=True)
    for step, (x, y), (x_flipped, y_flipped) in zip(range(2, 5), straight, flipped, strict=True):
        assert torch.equal(y, y_flipped)
        for image, other, mirrored in zip(x, x_flipped, draw_flips(1, step, 50), strict=True):
            assert torch.equal(other, image.flip(2) if mirrored else image)


def test_tokens_of_mirrored_images_are_trained_on(digits):
    train, _ = digits
    codebook = fit_codebook(train, DIGITS, 16)
    ids, mirrored = encode_set(codebook, train, mirror=True)
    pixels = {"images": train.images, "labels": train.labels}
    tokens = {"ids": ids, "ids" + FLIPPED: mirrored, "labels": train.labels}
    loaders = [BatchLoader(split, 50, seed=1, start=0, stop=3, flip=True) for split in (pixels, tokens)]
    for (x, y), (t, labels) in zip(*loaders, strict=True):
        assert torch.equal(codebook.encode(to_uint8(x)), t) and torch.equal(y, labels)


# --- slices of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_the_batches_of_all_slices_are_the_whole_batches(flip: bool) -> None:
    images = torch.arange(21 * 6, dtype=torch.uint8).view(21, 1, 2, 3)
    split = {"images": images, "labels": torch.arange(21)}

    def batches(batch_slice: BatchSlice) -> list:
        return list(BatchLoader(split, 8, 1, 2, 6, flip, batch_slice=batch_slice))

    whole = batches(BatchSlice())
    ranks = [batches(BatchSlice(rank, 2, 0, 2)) for rank in range(2)]
    assert len(whole) == 4 and [len(taken) for taken in ranks] == [8, 8]
    for step, batch in enumerate(whole):
        parts = [ranks[rank][2 * step + micro_batch] for micro_batch in range(2) for rank in range(2)]
        for all_rows, of_parts in zip(batch, zip(*parts, strict=True), strict=True):
            assert torch.equal(all_rows, torch.cat(of_parts))


# --- encoded sets ---------------------------------------------------------------------------------


def batches(root: Path, *overrides: str, kind: str = "latents", start: int = 0, batch_slice=None):
    config = on(root, "budget.images=80", *overrides, kind=kind)
    given = (batch_slice,) if batch_slice is not None else ()
    return list(build_data(config).batches(config, start, CPU, *given))


@pytest.mark.parametrize("kind", ["latents", "tokens"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_batches_from_files_equal_batches_from_memory(kind, workers, latent_set, token_set) -> None:
    root = {"latents": latent_set, "tokens": token_set}[kind]
    whole = batches(root, "data.flip=true", "data.in_memory=true", kind=kind)
    read = batches(root, "data.flip=true", "data.in_memory=false", f"data.workers={workers}", kind=kind)
    assert len(whole) == len(read) == 10
    for (x, labels), (other, theirs) in zip(whole, read, strict=True):
        assert torch.equal(x, other) and torch.equal(labels, theirs)
        assert x.dtype == (torch.int64 if kind == "tokens" else torch.float32)


def test_labels_match_and_half_of_the_examples_are_mirrored(token_set) -> None:
    config = on(token_set, kind="tokens")
    data = build_data(config)
    straight = data.train.rows(CPU, flip=True, in_memory=True)
    seen = {False: 0, True: 0}
    known = {
        (tuple(row.tolist()), int(label)): ending != ""
        for ending in ("_flipped", "")
        for row, label in zip(straight["ids" + ending], data.train.labels, strict=True)
    }
    for x, labels in batches(token_set, "data.flip=true", kind="tokens"):
        for row, label in zip(x, labels, strict=True):
            seen[known[tuple(row.tolist()), int(label)]] += 1
    assert seen[False] + seen[True] == 80 and 20 < seen[True] < 60
    plain = batches(token_set, kind="tokens")
    assert not any(
        known[tuple(row.tolist()), int(label)]
        for x, labels in plain
        for row, label in zip(x, labels, strict=True)
    )


def test_latents_are_drawn_from_their_posterior_at_each_step(latent_set) -> None:
    data = build_data(on(latent_set))
    rows = {name: tensor.load(CPU) for name, tensor in data.train.tensors.items()}
    mean, deviation = rows["mean"].float(), (rows["logvar"].float() / 2).exp()
    draws = [batches(latent_set, f"seed={seed}") for seed in (0, 0, 1)]
    for (x, _), (again, _) in zip(draws[0], draws[1], strict=True):
        assert torch.equal(x, again)
    assert not torch.equal(draws[0][0][0], draws[2][0][0])
    # 80 draws include each of 36 images more than once: residuals are unit normal, and all differ.
    residuals = []
    for x, _ in draws[0]:
        for image in x:
            best = (((image - mean) / deviation) ** 2).flatten(1).mean(1).argmin()
            residuals.append(((image - mean[best]) / deviation[best]).flatten())
    values = torch.stack(residuals)
    assert abs(values.mean().item()) < 0.05 and abs(values.std().item() - 1) < 0.05
    assert len(values.unique(dim=0)) == 80


def test_a_resumed_run_gets_the_same_batches(latent_set) -> None:
    later = batches(latent_set, "data.flip=true", start=6)
    for (x, labels), (again, theirs) in zip(batches(latent_set, "data.flip=true")[6:], later, strict=True):
        assert torch.equal(x, again) and torch.equal(labels, theirs)


def test_slices_of_a_batch_make_the_whole_batch(latent_set) -> None:
    whole = batches(latent_set, "data.flip=true")
    parts = [batches(latent_set, "data.flip=true", batch_slice=BatchSlice(rank, 2, 0, 2)) for rank in (0, 1)]
    for step, (x, labels) in enumerate(whole):
        slices = [parts[rank][2 * step + n] for n in (0, 1) for rank in (0, 1)]
        assert torch.equal(x, torch.cat([part[0] for part in slices]))
        assert torch.equal(labels, torch.cat([part[1] for part in slices]))


# --- image files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "flip", "workers"),
    [
        ("diffusion", "true", 0),
        ("diffusion", "false", 0),
        ("masked", "true", 0),
        ("masked", "false", 0),
        pytest.param("diffusion", "true", 2, marks=pytest.mark.integration),
        pytest.param("masked", "false", 2, marks=pytest.mark.integration),
    ],
)
def test_batches_in_memory_and_streamed_are_equal(image_folder, objective, flip, workers):
    """Over three epochs, started at step 0 and at step 7."""
    keys = (f"objective={objective}", f"data.flip={flip}", f"data.workers={workers}")
    memory, streamed = (
        build_data(small(image_folder, *keys, f"data.in_memory={kind}")) for kind in ("true", "false")
    )
    assert isinstance(memory.train, ImageSet) and isinstance(streamed.train, ImageFiles)
    assert memory.train.origin == streamed.train.origin
    config, cpu = small(image_folder, *keys), torch.device("cpu")
    for start in (0, 7):
        one, other = memory.batches(config, start, cpu), streamed.batches(config, start, cpu)
        assert len(one) == len(other) == 11 - start
        for (x, y), (x_streamed, y_streamed) in zip(one, other, strict=True):
            assert torch.equal(x, x_streamed) and torch.equal(y, y_streamed)
            assert x.dtype == x_streamed.dtype and len(x) == 10


def test_batch_slices_in_memory_and_streamed_are_equal(image_folder):
    config = small(image_folder, "objective=diffusion", "data.flip=true", "trainer.accumulate=5")
    batch_slice, cpu = BatchSlice(rank=1, world_size=2, micro_batches=5), torch.device("cpu")
    batches = [
        build_data(replace(config, data=replace(config.data, in_memory=kind))).batches(
            config, 8, cpu, batch_slice
        )
        for kind in (True, False)
    ]
    assert [len(each) for each in batches] == [15, 15]
    for (x, y), (x_streamed, y_streamed) in zip(*batches, strict=True):
        assert torch.equal(x, x_streamed) and torch.equal(y, y_streamed) and len(x) == 1
