"""Listings hold out every tenth example, are in natural order, and have enough examples."""

import pytest
from support.errors import fails
from support.image_files import load, put

from eltlab.data.sets.image_listing import list_images


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_every_tenth_of_a_class_is_held_out(tmp_path, prefix):
    names = [f"{prefix}{label}/{i}.png" for label in "ab" for i in range(1, 26)]
    listing = list_images(str(put(tmp_path, *names, size=1)))
    held_out = [f"{prefix}{label}/{i}.png" for label in "ab" for i in (10, 20)]
    assert listing.test.names == held_out and listing.test.labels == [0, 0, 1, 1]
    assert listing.train.names == [name for name in names if name not in held_out]


def test_names_are_in_natural_order(tmp_path):
    names = [
        "x/10.png",
        "x/9.png",
        "x/sub/1.png",
        "x/010.png",
        "x-1/2.png",
        "10/b2.png",
        "9/b10.png",
        "9/b9.png",
    ]
    put(tmp_path, *(f"train/{name}" for name in names), "test/x/1.png", size=1)
    listing = list_images(str(tmp_path))
    assert listing.classes == ["9", "10", "x", "x-1"]
    in_order = ["9/b9.png", "9/b10.png", "10/b2.png"]
    in_order += ["x/9.png", "x/010.png", "x/10.png", "x/sub/1.png", "x-1/2.png"]
    assert listing.train.names == [f"train/{name}" for name in in_order]
    assert listing.train.labels == [0, 0, 1, 2, 2, 2, 2, 3]


def test_too_few_images_are_refused(image_folder, tmp_path):
    put(image_folder, "train/d/1.png")
    message = fails(load, image_folder, True, 0, 8, 4)
    assert f"data.root={image_folder}: class d has 1 training images; each class requires at" in message
    few = put(tmp_path / "few", *(f"{label}/{i}.png" for label in "ab" for i in range(9)))
    assert f"data.root={few}: no test images" in fails(load, few, True, 0, 8, 2)
