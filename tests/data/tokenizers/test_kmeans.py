"""K-means is fitted once per set, to a sample of a large one, and to enough distinct vectors."""

import numpy as np
import torch
from support.digits import DIGITS
from support.errors import fails

from eltlab.data.images.image_set import ImageSet
from eltlab.data.tokenizers.kmeans import count_distinct
from eltlab.data.tokenizers.patch_codebook import fit_codebook
from eltlab.model.patches import Patches


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


def test_more_codes_than_distinct_patches_are_refused():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    images[1] = 9
    blank = ImageSet("blank", images, torch.zeros(3, dtype=torch.long))
    message = fails(fit_codebook, blank, Patches((1, 4, 4), 2), 3)
    assert message.startswith("data.codebook=3: ") and "2 distinct 2x2 patches" in message


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
