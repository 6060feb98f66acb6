"""Sets of image files: in memory or streamed, decoded once, and the same set wherever they are."""

import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.errors import fails
from support.image_files import encoded, image_config, load, noise, planes, zipped
from support.shared_data import imagenette, shared_file

from eltlab.common.disk_cache import cache_dir
from eltlab.data.images import image_files
from eltlab.data.images.image_decoding import decode_image
from eltlab.data.images.image_files import ImageFiles, load_images
from eltlab.data.images.image_set import ImageSet
from eltlab.data.sets.listing import ListedSplit


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.integration)])
def test_a_broken_image_is_named_by_workers_and_for_zips(image_folder, tmp_path, workers):
    path = image_folder / "train/c/1.png"
    path.write_bytes(b"no image")
    archive = zipped(image_folder, tmp_path / "pictures.zip")
    for root, place in [(image_folder, str(path)), (archive, f"{archive}, train/c/1.png")]:
        train, _ = load(root, in_memory=False, workers=workers)
        assert f"{place}: not a readable image" in fails(list, train.read_in_order(10))
        assert len(next(train.read_in_order(10))) == 10
        assert f"{place}: not a readable image" in fails(load, root, True, workers)


def test_a_missing_file_is_named(image_folder, tmp_path):
    train, _ = load(image_folder, in_memory=False)
    (image_folder / "train/a/0.png").unlink()
    assert f"{image_folder}/train/a/0.png: not readable" in fails(list, train.read_in_order(10))
    archive = zipped(image_folder, tmp_path / "x.zip")
    content = archive.read_bytes()
    damaged = content.replace((image_folder / "train/b/0.png").read_bytes()[40:90], bytes(50))
    assert damaged != content
    archive.write_bytes(damaged)
    assert f"{archive}, train/b/0.png: not readable (Bad CRC-32" in fails(load, archive)


def test_a_set_holds_the_images_in_order(image_folder):
    train, test = load(image_folder)
    assert (train.name, test.name, len(train), len(test)) == ("images/train", "images/test", 36, 12)
    assert train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert train.images.shape == (36, 3, 8, 8) and train.shape == (3, 8, 8)
    expected = Image.open(image_folder / "train/a/10.png")
    assert np.array_equal(train.images[10].numpy(), planes(expected))


@pytest.mark.parametrize(
    ("method", "workers"),
    [
        (zipfile.ZIP_STORED, 0),
        (zipfile.ZIP_DEFLATED, 0),
        pytest.param(zipfile.ZIP_DEFLATED, 2, marks=pytest.mark.integration),
    ],
)
def test_a_zip_equals_its_folder(image_folder, tmp_path, method, workers):
    archive = zipped(image_folder, tmp_path / "pictures.zip", "top/", method)
    for plain, packed in zip(load(image_folder), load(archive, workers=workers), strict=True):
        assert torch.equal(plain.images, packed.images)
        assert torch.equal(plain.labels, packed.labels) and plain.hash == packed.hash


@pytest.fixture
def opened(monkeypatch, tmp_path) -> list[str]:
    """The names of the images that this process decoded. The cache is empty: zips with equal images share
    their entry, also with those of other tests."""
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    names = []

    def decode_and_note(content: bytes, size: int, channels: int, name: str) -> np.ndarray:
        names.append(name)
        return decode_image(content, size, channels, name)

    monkeypatch.setattr(image_files, "decode_image", decode_and_note)
    return names


def test_images_are_decoded_once(image_folder, tmp_path, opened):
    first = load(image_folder)
    assert len(opened) == 48
    again = load(image_folder)
    assert len(opened) == 48 and [s.hash for s in first] == [s.hash for s in again]
    load(image_folder, size=4)
    assert len(opened) == 96
    copy = Path(shutil.copytree(image_folder, tmp_path / "node/copy"))
    archive = zipped(image_folder, tmp_path / "x.zip", "top/")
    for other in (copy, archive):  # the same files elsewhere
        assert [s.origin for s in load(other)] == [s.origin for s in first]
        assert len(opened) == 96
    assert len(list((cache_dir() / "images").glob("*.npy"))) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_decoded_images(image_folder):
    train, test = load(image_folder)
    cached = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert {str(path) for path in (cache_dir() / "images").glob("*.npy")} & cached
    assert len(train) and len(test)


def test_a_changed_file_is_decoded_again(image_folder, tmp_path, opened):
    before, path = load(image_folder)[0], image_folder / "train/a/4.png"
    bitmaps = [encoded(noise(seed), "BMP") for seed in (1, 2)]
    for content in bitmaps:  # equal size and modification time: only the inode's time of change differs
        path.write_bytes(content)
        os.utime(path, (10**9, 10**9))
        after = load(image_folder)[0]
        assert np.array_equal(after.images[4].numpy(), planes(Image.open(path)))
        assert torch.equal(after.images[5:], before.images[5:])
    archive = tmp_path / "x.zip"
    hashes = set()
    for content in bitmaps:
        path.write_bytes(content)
        for root in (image_folder, zipped(image_folder, archive)):
            train = load(root, in_memory=False)[0]
            hashes.add((train.origin, train.hash))
    assert len(hashes) == 2 and len({h for pair in hashes for h in pair}) == 4


def test_the_cache_has_no_partial_files(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    (image_folder / "test/c/3.png").write_bytes(b"no image")
    fails(load, image_folder)
    suffixes = [path.suffix for path in (tmp_path / "cache/images").iterdir()]
    assert set(suffixes) == {".npy", ".lock"}
    assert suffixes.count(".npy") == 1  # that of the training split, which is complete


@pytest.mark.parametrize(("memory", "kind"), [(4 * 48 * 192, ImageSet), (4 * 48 * 192 - 4, ImageFiles)])
def test_sets_are_loaded_into_at_most_a_quarter_of_memory(image_folder, monkeypatch, memory, kind):
    monkeypatch.setattr(image_files, "physical_memory", lambda: memory)
    assert [type(split) for split in load(image_folder, in_memory=None)] == [kind] * 2
    assert isinstance(load(image_folder, in_memory=True)[0], ImageSet)


def test_streamed_images_and_images_in_memory_have_one_origin(image_folder):
    memory, streamed = load(image_folder), load(image_folder, in_memory=False)
    assert [s.origin for s in memory] == [s.origin for s in streamed]
    origins = {memory[0].origin, memory[1].origin, load(image_folder, size=4)[0].origin}
    (image_folder / "train/a/4.png").rename(image_folder / "train/a/4b.png")  # the same order
    assert load(image_folder, in_memory=False)[0].origin == memory[0].origin
    (image_folder / "train/a/4b.png").rename(image_folder / "train/a/44.png")
    origins.add(load(image_folder, in_memory=False)[0].origin)
    (image_folder / "train/a/44.png").rename(image_folder / "train/b/44.png")
    origins.add(load(image_folder, in_memory=False)[0].origin)
    (image_folder / "train/a/5.png").write_bytes(encoded(noise(77, 20, 20)))
    origins.add(load(image_folder, in_memory=False)[0].origin)
    assert len(origins) == 6


def test_a_copy_of_a_folder_is_the_same_set(image_folder, tmp_path):
    copy = shutil.copytree(image_folder, tmp_path / "copy")
    for mine, theirs in zip(load(image_folder), load(copy, in_memory=False), strict=True):
        assert mine.origin == theirs.origin  # so a run resumes after its images have moved


def test_subsets_in_memory_and_streamed_are_equal(image_folder, opened):
    memory, streamed = load(image_folder)[0], load(image_folder, in_memory=False)[0]
    for count in (7, 35, 36, None):
        one, other = memory.subset(count), streamed.subset(count)
        assert isinstance(other, ImageSet) and one.hash == other.hash and one.name == other.name
    read = len(opened)
    assert read == 48 + 7 + 35  # the whole set was in the cache
    streamed.subset(7)
    assert len(opened) == read
    assert "images/train has only 36 images; give at most 36" in fails(streamed.subset, 37)


def test_imagenette_is_read_from_its_zip():
    train, test = load_images(image_config(imagenette(), 64, 10))
    assert (len(train), len(test)) == (9469, 3925)
    assert torch.bincount(train.labels).tolist()[:3] == [963, 955, 993]
    some = train.subset(12)
    # Photographs, not noise: neighbouring pixels are similar.
    assert some.images.float().std() > 40
    assert (some.images[..., 1:].float() - some.images[..., :-1].float()).abs().mean() < 30


def test_cifar10_jpeg_is_read(tmp_path):
    names: list[str] = []
    with tarfile.open(shared_file("cifar10_jpeg.tar.xz")) as tar:
        for member in tar:  # only the first images: reading all of them takes seconds
            if member.isfile():
                tar.extract(member, tmp_path, filter="data")
                names.append(member.name)
            if len(names) == 20:
                break
    split = ListedSplit(names, [0] * 20)
    images = ImageFiles("x", tmp_path, split, image_config(tmp_path, 32, 1)).load().images
    assert images.shape == (20, 3, 32, 32) and images.float().std() > 40
    assert np.array_equal(images[7], planes(Image.open(tmp_path / names[7])))
