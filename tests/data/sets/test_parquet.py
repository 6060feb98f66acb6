"""Image sets in Parquet files, as the library datasets writes them for the Hugging Face hub."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.errors import fails
from support.image_files import encoded, image_config, noise
from support.parquet_files import NAMES, TRAIN, write

from eltlab.data.images.image_files import ImageFiles, load_images
from eltlab.data.sets.image_listing import list_images
from eltlab.runs.compose_config import compose


@pytest.fixture
def root(tmp_path) -> Path:
    """The layout of the hub: data/SPLIT-NNNNN-of-NNNNN.parquet."""
    write(tmp_path / "set/data/train-00000-of-00002.parquet", TRAIN[:9])
    write(tmp_path / "set/data/train-00001-of-00002.parquet", TRAIN[9:], 9)
    write(tmp_path / "set/data/validation-00000-of-00001.parquet", [2, 0, 1, 1], 50)
    return tmp_path / "set"


def load(root: Path, in_memory: bool = False, workers: int = 0):
    return load_images(image_config(root, 8, 3, workers, in_memory))


def test_rows_keep_their_order_and_class_names(root) -> None:
    listing = list_images(str(root))
    assert listing.classes == NAMES
    assert listing.train.labels == TRAIN and listing.test.labels == [2, 0, 1, 1]
    assert listing.train.names[8:10] == [
        "data/train-00000-of-00002.parquet:8",
        "data/train-00001-of-00002.parquet:0",
    ]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_parquet_files_and_a_folder_give_equal_images(root, tmp_path, workers) -> None:
    train, test = load(root, workers=workers)
    assert isinstance(train, ImageFiles)
    for split, first, labels in ((train, 0, TRAIN), (test, 50, [2, 0, 1, 1])):
        for i, label in enumerate(labels):
            path = tmp_path / "folder" / split.name.removeprefix("images/") / NAMES[label]
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{i}.png").write_bytes(encoded(noise(first + i, 10, 8)))
    of_folder = load(tmp_path / "folder")
    for mine, theirs in zip((train, test), of_folder, strict=True):
        mine, theirs = mine.load(), theirs.load()
        order = mine.labels.argsort(stable=True)  # a folder is sorted by class
        assert torch.equal(mine.images[order], theirs.images)
        assert torch.equal(mine.labels[order], theirs.labels)


def test_rows_are_read_in_any_order(root) -> None:
    train = load(root)[0]
    whole = train.load().images
    order = [13, 0, 5, 5, 9, 8]
    [read] = train.read_batches([order])
    assert torch.equal(read, whole[order])
    assert torch.equal(train.subset(6).images, load(root, True)[0].subset(6).images)


def test_every_tenth_row_of_a_single_file_is_held_out(tmp_path) -> None:
    file = write(tmp_path / "animals.parquet", [0, 1] * 12, features=None, columns=("img", "label"))
    listing = list_images(str(file))
    assert listing.classes == ["0", "1"]
    assert listing.test.names == ["animals.parquet:18", "animals.parquet:19"]
    assert len(listing.train.names) == 22 and listing.train.labels == [0, 1] * 11
    assert compose(["data=images", f"data.root={file}"]).data.classes == 2


def test_a_test_split_without_labels_is_skipped(root) -> None:
    write(root / "data/test-00000-of-00001.parquet", [-1, -1, -1])
    assert list_images(str(root)).test.labels == [2, 0, 1, 1]


def test_the_origin_follows_the_content_and_not_the_place(root, tmp_path) -> None:
    before = load(root)[0].origin
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    os.utime(copy / "data/train-00000-of-00002.parquet", (1, 1))
    assert load(copy)[0].origin == before
    write(copy / "data/train-00001-of-00002.parquet", TRAIN[9:], 10)
    assert load(copy)[0].origin != before


def test_files_that_are_not_a_set_of_images_are_refused(root, tmp_path) -> None:
    train = root / "data/train-00000-of-00002.parquet"
    cut = tmp_path / "cut/train.parquet"
    cut.parent.mkdir()
    cut.write_bytes(train.read_bytes()[:-20])
    assert f"{cut}: not a Parquet file, or damaged (" in fails(list_images, str(cut))
    text = write(tmp_path / "text/train.parquet", [0, 1], features=None, columns=("text", "label"))
    assert "columns text, label, but requires image and label" in fails(list_images, str(text))
    high = write(tmp_path / "high/train.parquet", [0, 3])
    assert f"{high}:1: label 3, but there are 3 classes" in fails(list_images, str(high))
    write(tmp_path / "two/test.parquet", [0, 1])
    write(tmp_path / "two/validation.parquet", [0, 1])
    message = fails(list_images, str(tmp_path / "two"))
    assert "no training rows; by their names, the files are the splits test, validation" in message


def test_a_missing_or_broken_image_is_named(tmp_path) -> None:
    images = [{"bytes": encoded(noise(i)), "path": "x.png"} for i in range(24)]
    images[3]["bytes"] = None
    images[5]["bytes"] = b"no image"
    labels = pa.array([0, 1] * 12, pa.int64())
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": images, "label": labels}), file)
    train = load_images(image_config(file, 8, 2))[0]
    for row, reason in ((3, "not readable (the image is stored outside"), (5, "not a readable image")):
        assert fails(list, train.read_batches([[row]])).startswith(f"{file}:{row}: {reason}")
