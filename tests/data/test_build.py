"""Training data are built with the requested tokenizer and mirrored as requested."""

import pytest
import torch
from support.image_files import small

from eltlab.data.build import build_data


@pytest.mark.parametrize("objective", ["diffusion", "masked"])
def test_data_flip_mirrors_about_half(image_folder, objective):
    parts = []
    for flip in ("false", "true"):
        config = small(image_folder, f"objective={objective}", f"data.flip={flip}")
        batches = build_data(config).batches(config, 0, torch.device("cpu"))
        parts.append(torch.cat([x.flatten(1) for x, _ in batches]))
    assert 30 < (parts[0] != parts[1]).any(dim=1).sum() < 80  # of 110
