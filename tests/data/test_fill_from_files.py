"""Keys that the files decide are filled in and checked."""

import pytest
from support.errors import fails
from support.image_files import put, small
from support.tiny_run import tiny

from eltlab.data.build import build_data, load_data

SETS = ["imagenet256_latents", "imagenet256_tokens", "imagenette128_latents", "ucf101"]


@pytest.mark.parametrize("name", SETS)
def test_known_sets_are_planned_without_their_files(name) -> None:
    objective = "diffusion" if name.endswith("latents") else "masked"
    config = tiny(f"data={name}", f"objective={objective}", "data.codebook=1024", "metrics.samples=2000")
    assert config.data.root is None
    assert "data.root is missing" in fails(build_data, config)


def test_classes_are_counted_and_checked(image_folder):
    config = small(image_folder)
    assert config.data.classes == 3
    assert len(load_data(config).train) == 36
    put(image_folder, "train/d/1.png", "train/d/2.png")
    message = fails(load_data, config)
    assert message.startswith(f"data.classes=3: {image_folder} has 4 classes; choose another data.root, or ")
    assert message.endswith("train with data.classes=4")
