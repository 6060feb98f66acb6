"""Patches of pixels as tokens: the nearest code, its place, and its cache."""

import math

import pytest
import torch
from support.digits import DIGITS

from eltlab.data.images.image_set import ImageSet, to_float, to_uint8
from eltlab.data.tokenizers.patch_codebook import (
    ENCODED,
    PatchCodebook,
    encode_set,
    fit_codebook,
    patch_batch,
    stream_batch,
)
from eltlab.data.tokenizers.tokenizer import psnr
from eltlab.model.patches import Patches


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


def test_codebooks_are_cached_per_setting(digits):
    train, _ = digits
    settings = [(train, 2, 8), (train, 2, 9), (train, 4, 8), (train.subset(300), 2, 8)]
    books = [fit_codebook(part, Patches((1, 8, 8), patch), size) for part, patch, size in settings]
    assert len({book.hash for book in books}) == 4
    assert [tuple(book.codes.shape) for book in books] == [(8, 4), (9, 4), (8, 16), (8, 4)]


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
