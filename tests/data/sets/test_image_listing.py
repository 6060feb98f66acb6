"""A zip is listed as the folder in it, and Parquet files next to class folders are refused."""

import pytest
from PIL import Image
from support.errors import fails
from support.image_files import encoded, noise, put, zipped
from support.parquet_files import NAMES, TRAIN, write

from eltlab.data.sets.image_listing import list_images


@pytest.mark.parametrize("top", ["", "pictures/", "my/"])
def test_a_zip_is_listed_as_its_folder(image_folder, tmp_path, top):
    archive = zipped(image_folder, tmp_path / "pictures.zip", top)
    plain, packed = list_images(str(image_folder)), list_images(str(archive))
    assert packed.classes == plain.classes
    for mine, other in [(packed.train, plain.train), (packed.test, plain.test)]:
        assert mine.names == [top + name for name in other.names] and mine.labels == other.labels


def test_a_zip_of_only_a_training_folder(tmp_path):
    put(tmp_path / "x", *(f"train/{c}/{i}.png" for c in "ab" for i in range(10)))
    listing = list_images(str(zipped(tmp_path / "x", tmp_path / "x.zip")))
    assert listing.classes == ["a", "b"] and len(listing.test.names) == 2


@pytest.mark.parametrize("inside", ["", "train/"])
def test_a_parquet_file_next_to_class_folders_is_refused(inside, tmp_path) -> None:
    for name in NAMES:
        (tmp_path / inside / name).mkdir(parents=True)
        for i in range(11):
            (tmp_path / inside / name / f"{i}.png").write_bytes(encoded(noise(i, 10, 8)))
    assert len(list_images(str(tmp_path)).train.names) >= 30
    write(tmp_path / "captions.parquet", TRAIN)
    message = fails(lambda: list_images(str(tmp_path)))
    assert "class folders of images (cat, dog, owl) and captions.parquet" in message
    assert len(list_images(str(tmp_path / "captions.parquet")).classes) == 3


def test_a_folder_without_parquet_files_is_listed_as_a_folder(tmp_path) -> None:
    put(tmp_path, *(f"{label}/{i}.png" for label in "ab" for i in range(12)))
    assert Image.open(tmp_path / "a/1.png").size == (8, 8)
    assert list_images(str(tmp_path)).classes == ["a", "b"]
