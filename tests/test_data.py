"""Digits, number ranges, the patch codebook, and batches that are a function of (seed, step)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eltlab.common.errors import UserError
from eltlab.data.batches import FLIPPED, BatchLoader, batch_indices, draw_flips
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers.kmeans import count_distinct
from eltlab.data.tokenizers.patch_codebook import (
    ENCODED,
    PatchCodebook,
    encode_set,
    fit_codebook,
    patch_batch,
    stream_batch,
)
from eltlab.data.tokenizers.tokenizer import RECONSTRUCTED, psnr, reconstruct
from eltlab.model.patches import Patches

DIGITS = Patches((1, 8, 8), 2)

# --- digits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load_digits()


def test_digits_have_a_fixed_split(digits):
    train, test = digits
    assert (len(train), len(test)) == (1442, 355)
    for split in digits:
        assert split.images.shape[1:] == (1, 8, 8) and split.images.dtype == torch.uint8
        assert split.images.min() == 0 and split.images.max() == 255
    again = load_digits()
    assert [s.hash for s in digits] == [s.hash for s in again] and train.hash != test.hash


def test_digits_are_split_without_overlap_or_loss(digits):
    from sklearn.datasets import load_digits as original

    train, test = (split.images.flatten(1).numpy() for split in digits)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    both = np.concatenate([train, test]) / 255 * 16
    # 17 grey levels come back exactly; the split loses no image.
    assert np.abs(both - both.round()).max() < 0.05
    source = original().data
    order, order_source = np.lexsort(both.round().T), np.lexsort(source.T)
    assert np.array_equal(both.round()[order], source[order_source])


def test_digits_are_balanced(digits):
    train, test = (torch.bincount(split.labels, minlength=10) for split in digits)
    assert test.min() >= 34 and test.max() <= 36
    assert (test == (train + test) // 5).all()


def test_subset_is_seeded_and_in_order(digits):
    train, _ = digits
    part = train.subset(100)
    assert len(part) == 100 and part.hash == train.subset(100).hash != train.hash
    keys = [image.numpy().tobytes() for image in train.images]
    places = [keys.index(image.numpy().tobytes()) for image in part.images]
    assert places == sorted(places)
    # As in version 0.1.0: protocols contain the hash of the subset.
    assert places[:5] == [12, 98, 101, 118, 150]
    assert train.subset(None) is train and train.subset(1442) is train


def test_a_subset_larger_than_the_set_is_refused(digits):
    message = "metrics.reference=1443: digits/train has only 1,442 images; give at most 1442"
    with pytest.raises(UserError, match=message):
        digits[0].subset(1443)


# --- number ranges --------------------------------------------------------------------------------


def test_every_grey_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = to_float(levels)
    assert x[0] == -1 and x[255] == 1 and x.dtype == torch.float32
    assert torch.equal(to_uint8(x), levels)


def test_to_uint8_rounds_to_nearest_and_clips():
    x = torch.tensor([-3.0, 3.0, to_float(torch.tensor(100)) + 0.4 / 127.5])
    assert to_uint8(x).tolist() == [0, 255, 100]


# --- the codebook ---------------------------------------------------------------------------------


def test_reconstruction_improves_with_the_codebook(digits):
    train, test = digits
    values = []
    for size in (4, 16, 64, 256):
        codebook = fit_codebook(train, DIGITS, size)
        assert codebook.codes.shape == (size, 4)
        values.append(psnr(test.images, codebook.decode(codebook.encode(test.images))))
    assert values == sorted(values) and values[-1] > values[0] + 8


def test_encode_takes_the_nearest_code(digits):
    train, test = digits
    codebook = fit_codebook(train, DIGITS, 64)
    ids = codebook.encode(test.images)
    assert ids.shape == (355, 16) and ids.min() >= 0 and ids.max() < 64
    vectors, codes = DIGITS.cut(to_float(test.images)).double(), codebook.codes.double()
    distances = (vectors.unsqueeze(2) - codes).square().sum(-1)
    chosen = distances.gather(2, ids.unsqueeze(2)).squeeze(2)
    # If two codes are equally near up to float32 precision, both are right.
    torch.testing.assert_close(chosen, distances.amin(dim=2), atol=1e-6, rtol=0)


def test_codes_are_decoded_at_the_place_of_their_tokens():
    codebook = PatchCodebook(torch.arange(8.0).view(2, 4) / 4 - 1, Patches((1, 4, 4), 2))
    image = codebook.decode(torch.tensor([[0, 1, 1, 0]]))
    assert image.shape == (1, 1, 4, 4)
    assert torch.equal(codebook.encode(image), torch.tensor([[0, 1, 1, 0]]))
    assert torch.equal(image[0, 0, :2, :2].flatten(), to_uint8(codebook.codes[0]))
    assert torch.equal(image[0, 0, :2, 2:].flatten(), to_uint8(codebook.codes[1]))


def test_codebook_is_fitted_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    small = train.subset(200)
    first = fit_codebook(small, DIGITS, 8)
    files = [f for f in (tmp_path / "codebooks").iterdir() if f.suffix != ".lock"]
    assert len(files) == 1  # and no temporary file
    marked = np.load(files[0], allow_pickle=False)
    assert torch.equal(torch.from_numpy(marked), first.codes)
    assert fit_codebook(small, DIGITS, 8).hash == first.hash
    # The codes are read from the file: if they change there, the result changes.
    np.save(files[0], marked + 1)
    assert torch.equal(fit_codebook(small, DIGITS, 8).codes, first.codes + 1)


def test_codebook_fits_the_same_codes_again(digits, tmp_path, monkeypatch):
    small = digits[0].subset(200)
    hashes = []
    for name in "ab":
        monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / name))
        hashes.append(fit_codebook(small, DIGITS, 8).hash)
    assert hashes[0] == hashes[1]


def test_codebooks_are_cached_per_setting(digits):
    train, _ = digits
    hashes = [
        fit_codebook(part, Patches((1, 8, 8), patch), size).hash
        for part, patch, size in [
            (train, 2, 8),
            (train, 2, 9),
            (train, 4, 8),
            (train.subset(300), 2, 8),
        ]
    ]
    assert len(set(hashes)) == 4


def test_more_codes_than_distinct_patches_are_refused():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images[1] = 9
    blank = ImageSet("blank", images, torch.zeros(3, dtype=torch.long))
    with pytest.raises(UserError, match=r"data.codebook=3: .* 2 distinct 2x2 patches"):
        fit_codebook(blank, Patches((1, 4, 4), 2), 3)


def test_rare_patches_at_the_end_are_counted():
    vectors = np.zeros((100, 2), dtype=np.float32)
    vectors[-3:] = [[1, 0], [0, 1], [1, 1]]
    assert count_distinct(vectors, 4) == 4
    assert count_distinct(vectors, 5) == 4
    assert count_distinct(np.eye(100), 5) >= 5


def test_kmeans_is_fitted_to_a_subset_of_a_large_set(digits, monkeypatch):
    train, _ = digits
    monkeypatch.setattr("eltlab.data.tokenizers.kmeans.SAMPLE_IMAGES", 300)
    assert fit_codebook(train, DIGITS, 16).hash == fit_codebook(train.subset(300), DIGITS, 16).hash
    monkeypatch.setattr("eltlab.data.tokenizers.kmeans.SAMPLE_VALUES", 200 * 64)
    assert fit_codebook(train, DIGITS, 16).hash == fit_codebook(train.subset(200), DIGITS, 16).hash


def test_codebooks_are_cached_per_patch_size():
    """Written next to each other, size 1 with 64 codes and size 16 with 4 codes would both be 164."""
    pixels = torch.arange(16 * 256).mul(7).remainder(251).view(16, 1, 16, 16).to(torch.uint8)
    images = ImageSet("x", pixels, torch.zeros(16, dtype=torch.long))
    fine = fit_codebook(images, Patches((1, 16, 16), 1), 64)
    coarse = fit_codebook(images, Patches((1, 16, 16), 16), 4)
    assert fine.codes.shape == (64, 1) and coarse.codes.shape == (4, 256)


@pytest.mark.parametrize("tokens", [1, 16, 49, 64, 1024, 10**6])
def test_a_stream_is_encoded_in_the_chunks_of_the_whole_set(tokens):
    assert ENCODED % patch_batch(tokens) == 0


@pytest.mark.parametrize("tokens", [1, 64, 1024, 10**6])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 128, 128), (16, 3, 128, 128), (64, 3, 512, 512)])
def test_stream_batches_are_bounded_multiples_of_chunks(shape, tokens):
    images = ImageSet("x", torch.zeros(1, *shape, dtype=torch.uint8), torch.zeros(1))
    part = stream_batch(images.shape, tokens)
    assert part % patch_batch(tokens) == 0 and ENCODED % part == 0
    assert part * math.prod(shape) <= 2**26 or part == patch_batch(tokens)


def test_a_set_is_encoded_whole_and_mirrored(digits):
    train, _ = digits
    codebook = fit_codebook(train, DIGITS, 16)
    ids, mirrored = encode_set(codebook, train, mirror=True)
    assert torch.equal(ids, codebook.encode(train.images))
    assert torch.equal(mirrored, codebook.encode(train.images.flip(3)))
    assert encode_set(codebook, train)[1] is None


@pytest.mark.parametrize(("frames", "parts"), [(1, [8, 1]), (4, [2, 2, 2, 2, 1]), (16, [1] * 9)])
def test_clips_are_reconstructed_eight_frames_or_one_clip_at_a_time(frames, parts):
    seen = []

    class Watched:
        def encode(self, images):
            seen.append(len(images))
            return images

        def decode(self, images):
            return images

    shape = (9, 3, 2, 2) if frames == 1 else (9, frames, 3, 2, 2)
    images = torch.randint(256, shape, dtype=torch.uint8)
    assert torch.equal(reconstruct(Watched(), images), images)
    assert seen == parts


def test_psnr_by_hand():
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    grey = black.clone()
    grey[0, 0, 0, 0] = 10  # mean squared error 25
    assert psnr(black, grey) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == pytest.approx(0)
    many = torch.randint(256, (2 * RECONSTRUCTED + 3, 1, 2, 2), dtype=torch.uint8)
    error = (many.double() - 100).square().mean().item()
    assert psnr(many, torch.full_like(many, 100)) == pytest.approx(10 * math.log10(255**2 / error))


# --- batches --------------------------------------------------------------------------------------


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
    images = BatchLoader(
        {"images": train.images, "labels": train.labels}, 50, seed=1, start=0, stop=3, flip=True
    )
    tokens = BatchLoader(
        {"ids": ids, "ids" + FLIPPED: mirrored, "labels": train.labels}, 50, 1, 0, 3, flip=True
    )
    for (x, y), (t, labels) in zip(images, tokens, strict=True):
        assert torch.equal(codebook.encode(to_uint8(x)), t) and torch.equal(y, labels)
