"""Digits, number ranges, the patch codebook, and batches that are a function of (seed, step)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eltlab.data.batches import Batches, batch_indices
from eltlab.data.digits import load_digits
from eltlab.data.images import ImageSet, to_float, to_uint8
from eltlab.data.tokenizer import PatchCodebook, fit_codebook, psnr
from eltlab.errors import UserError
from eltlab.patches import patchify

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
    assert train.subset(None) is train and train.subset(5000) is train


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
        codebook = fit_codebook(train, 2, size)
        assert codebook.codes.shape == (size, 4)
        values.append(psnr(test.images, codebook.decode(codebook.encode(test.images))))
    assert values == sorted(values) and values[-1] > values[0] + 8


def test_encode_takes_the_nearest_code(digits):
    train, test = digits
    codebook = fit_codebook(train, 2, 64)
    ids = codebook.encode(test.images, batch=100)
    assert ids.shape == (355, 16) and ids.min() >= 0 and ids.max() < 64
    vectors, codes = patchify(to_float(test.images), 2).double(), codebook.codes.double()
    distances = (vectors.unsqueeze(2) - codes).square().sum(-1)
    chosen = distances.gather(2, ids.unsqueeze(2)).squeeze(2)
    # Codes that are equally near to within float32 are both right.
    torch.testing.assert_close(chosen, distances.amin(dim=2), atol=1e-6, rtol=0)


def test_codes_lie_where_their_tokens_do():
    codebook = PatchCodebook(torch.arange(8.0).view(2, 4) / 4 - 1, channels=1, patch=2)
    image = codebook.decode(torch.tensor([[0, 1, 1, 0]]))
    assert image.shape == (1, 1, 4, 4)
    assert torch.equal(codebook.encode(image), torch.tensor([[0, 1, 1, 0]]))
    assert torch.equal(image[0, 0, :2, :2].flatten(), to_uint8(codebook.codes[0]))
    assert torch.equal(image[0, 0, :2, 2:].flatten(), to_uint8(codebook.codes[1]))


def test_codebook_is_fitted_once(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    small = train.subset(200)
    first = fit_codebook(small, 2, 8)
    files = list((tmp_path / "codebooks").iterdir())
    assert len(files) == 1  # whole, and no temporary file left beside it
    marked = np.load(files[0], allow_pickle=False)
    assert torch.equal(torch.from_numpy(marked), first.codes)
    assert fit_codebook(small, 2, 8).hash == first.hash
    # The file is what is read: another set of codes in it comes back.
    np.save(files[0], marked + 1)
    assert torch.equal(fit_codebook(small, 2, 8).codes, first.codes + 1)


def test_codebook_fits_the_same_codes_again(digits, tmp_path, monkeypatch):
    small = digits[0].subset(200)
    hashes = []
    for name in "ab":
        monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / name))
        hashes.append(fit_codebook(small, 2, 8).hash)
    assert hashes[0] == hashes[1]


def test_cached_codebooks_of_other_settings_are_others(digits):
    train, _ = digits
    hashes = [
        fit_codebook(part, patch, size).hash
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
        fit_codebook(blank, 2, 3)


def test_psnr_by_hand():
    black = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    grey = black.clone()
    grey[0, 0, 0, 0] = 10  # mean squared error 25
    assert psnr(black, grey) == pytest.approx(10 * math.log10(255**2 / 25))
    assert psnr(black, black) == math.inf
    assert psnr(black, black + 255) == pytest.approx(0)


# --- batches --------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 100))
def test_every_epoch_visits_each_example_once(seed, size, batch_size):
    """Epochs lie end to end: batches cross their borders, and may be larger than the set."""
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


def test_epochs_and_seeds_are_shuffled_apart():
    first, second = batch_indices(0, 0, 100, 100), batch_indices(0, 1, 100, 100)
    other = batch_indices(1, 0, 100, 100)
    straight = torch.arange(100)
    assert not any(
        torch.equal(a, b) for a, b in [(first, second), (first, other), (first, straight)]
    )


def test_a_resumed_loader_goes_on_where_it_stopped():
    inputs, labels = torch.randn(30, 2), torch.arange(30)
    whole = list(Batches(inputs, labels, 8, seed=2, start=0, stop=10))
    rest = Batches(inputs, labels, 8, seed=2, start=6, stop=10)
    assert len(rest) == 4 == len(list(rest))
    for (x, y), (x_whole, y_whole) in zip(rest, whole[6:], strict=True):
        assert torch.equal(x, x_whole) and torch.equal(y, y_whole)
        assert torch.equal(x, inputs[y])  # inputs and labels stay together
