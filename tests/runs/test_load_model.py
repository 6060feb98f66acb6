"""A loaded run is a model to sample from."""

from pathlib import Path

import torch

import eltlab


def test_load_gives_a_model_to_sample_from(trained_run: Path) -> None:
    model = eltlab.load(trained_run)
    images = model.sample([1, 2, 3], loops=2, steps=4, seed=5)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images[1:], model.sample([2, 3], loops=2, steps=4, seed=5, indices=[1, 2]))
    assert not torch.equal(images, model.sample([1, 2, 3], loops=2, steps=4, seed=6))
