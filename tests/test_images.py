"""Image folders and zips, decoding, Fashion-MNIST and CIFAR-10, in memory and streamed."""

import gzip
import hashlib
import io
import os
import pickle
import random
import shutil
import signal
import struct
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails, tiny
from PIL import Image

from eltlab import evaluate, fit
from eltlab.common.disk_cache import cache_dir
from eltlab.common.errors import UserError
from eltlab.common.seeds import BatchSlice
from eltlab.config.schema import DataConfig
from eltlab.data.build import build_data, build_splits
from eltlab.data.images import image_files
from eltlab.data.images.image_decoding import decode_image
from eltlab.data.images.image_files import ImageFiles, load_images
from eltlab.data.images.image_set import ImageSet
from eltlab.data.images.torchvision_sets import load_cifar10, load_fashion_mnist
from eltlab.data.sets.image_listing import SUFFIXES, list_images
from eltlab.data.sets.listing import ListedSplit
from eltlab.runs.compose_config import compose

# --- files for the tests --------------------------------------------------------------------------


def noise(seed: int, width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def put(root: Path, *names: str, size: int = 8) -> Path:
    """Writes a different image of noise under each name; returns root."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(random.Random(name).randrange(10**6), size, size)))
    return root


def zipped(root: Path, path: Path, top: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(root.rglob("*"), key=lambda file: file.name[::-1]):
            archive.write(file, top + str(file.relative_to(root)))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of 12 training and 4 test images, 10x8 pixels or 8x8."""
    root = tmp_path / "pictures"
    for label in ("a", "b", "c"):
        put(root, *(f"train/{label}/{i}.png" for i in range(12)))
        put(root, *(f"test/{label}/{i}.png" for i in range(4)))
    (root / "train/b/3.png").write_bytes(encoded(noise(5, 10, 8), "PNG"))
    return root


def load(root: Path, in_memory: bool | None = True, workers: int = 0, size: int = 8, classes: int = 3):
    return load_images(image_config(root, size, classes, workers, in_memory))


def image_config(
    root: Path, size: int, classes: int, workers: int = 0, in_memory: bool | None = False
) -> DataConfig:
    return DataConfig(
        "images",
        str(root),
        size=size,
        channels=3,
        classes=classes,
        workers=workers,
        in_memory=in_memory,
    )


# --- listing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["test", "val", "valid", "validation", "Test", "VAL"], ids=lambda name: f"dir-{name}"
)
def test_a_test_folder_is_the_test_split(tmp_path, name):
    put(tmp_path, "train/b/1.png", "train/a/1.png", f"{name}/b/2.png", "other/x/3.png")
    listing = list_images(str(tmp_path))
    assert listing.classes == ["a", "b"]
    assert listing.train.names == ["train/a/1.png", "train/b/1.png"]
    assert listing.train.labels == [0, 1]
    assert (listing.test.names, listing.test.labels) == ([f"{name}/b/2.png"], [1])


def test_test_comes_before_val(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "val/a/3.png")
    assert list_images(str(tmp_path)).test.names == ["test/a/2.png"]


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
    ]
    put(tmp_path, *(f"train/{name}" for name in [*names, "9/b9.png"]), "test/x/1.png", size=1)
    listing = list_images(str(tmp_path))
    assert listing.classes == ["9", "10", "x", "x-1"]
    in_order = ["9/b9.png", "9/b10.png", "10/b2.png"]
    in_order += ["x/9.png", "x/010.png", "x/10.png", "x/sub/1.png", "x-1/2.png"]
    assert listing.train.names == [f"train/{name}" for name in in_order]
    assert listing.train.labels == [0, 0, 1, 2, 2, 2, 2, 3]


def test_only_images_are_listed(tmp_path):
    put(tmp_path, *(f"train/{c}/{c}{s}" for c in "ab" for s in (*SUFFIXES, ".JPG")), "test/a/1.png")
    junk = "train/a/.x.png train/a/t.txt train/.c/1.png train/__MACOSX/1.png __MACOSX/train/d/1.png"
    put(tmp_path, *junk.split(), "train/loose.png", "train/empty/notes.md")
    listing = list_images(str(tmp_path))
    assert listing.classes == ["a", "b"]
    assert len(listing.train.names) == 2 * (len(SUFFIXES) + 1)


@pytest.mark.parametrize("top", ["", "pictures/", "my/"])
def test_a_zip_is_listed_as_its_folder(folder, tmp_path, top):
    archive = zipped(folder, tmp_path / "pictures.zip", top)
    plain, packed = list_images(str(folder)), list_images(str(archive))
    assert packed.classes == plain.classes
    for mine, other in [(packed.train, plain.train), (packed.test, plain.test)]:
        assert mine.names == [top + name for name in other.names] and mine.labels == other.labels


def test_a_zip_of_only_a_training_folder(tmp_path):
    put(tmp_path / "x", *(f"train/{c}/{i}.png" for c in "ab" for i in range(10)))
    listing = list_images(str(zipped(tmp_path / "x", tmp_path / "x.zip")))
    assert listing.classes == ["a", "b"] and len(listing.test.names) == 2


def test_links_are_followed_and_loops_end(tmp_path):
    root = put(tmp_path / "root", "a/1.png", "b/1.png", "b/2.png")
    put(tmp_path / "elsewhere", "3.png")
    (root / "a/more").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    (root / "a/self").symlink_to(root / "a")
    (root / "b/up").symlink_to(root)
    for one in range(12):  # each folder links to all of them: 12! paths without a loop
        for other in range(12):
            place = put(tmp_path / f"maze/{one}", "1.png")
            (place / f"to{other}").symlink_to(tmp_path / f"maze/{other}")
    (root / "b/maze").symlink_to(tmp_path / "maze/0")
    listing = list_images(str(root))
    assert listing.classes == ["a", "b", "c"]
    names = listing.train.names + listing.test.names
    assert [name for name in names if "maze" not in name] == [
        *("a/1.png", "a/more/3.png", "b/1.png", "b/2.png", "c/3.png")
    ]
    assert 12 <= len([name for name in names if "maze" in name]) <= 24


def test_folders_that_are_not_a_set_of_classes_are_refused(tmp_path):
    def refused(*names: str) -> str:
        number = len(list(tmp_path.iterdir()))
        root = put(tmp_path / f"r{number}", *names, size=1)
        root.mkdir(exist_ok=True)
        message = fails(list_images, str(root))
        assert f"data.root={root}: " in message
        return message

    assert ": no images; give" in refused()
    assert ": no images; give" in refused("a/notes.txt", "b/notes.txt")
    assert "directly in the folder; give each class its own folder, CLASS/" in refused("1.png", "2.png")
    assert "only one class, a; give at least two class folders" in refused("a/1.png", "a/b/2.png")
    assert "only one class, train/a; give" in refused("train/a/1.png", "test/a/2.png")
    assert "directly in train/" in refused("train/1.png", "test/a/2.png")
    assert "the images in val/ are not in class folders" in refused(
        "train/a/1.png", "train/b/1.png", "val/1.png"
    )
    message = refused("train/a/1.png", "train/b/1.png", "test/c/1.png", "test/a/1.png")
    assert message.endswith("test/c is a class that train/ does not have; train/ has a, b")
    assert "data.root is missing" in fails(list_images, None)
    assert f"{tmp_path}/nowhere: does not exist" in fails(list_images, f"{tmp_path}/nowhere")


def test_files_that_are_not_a_zip_are_refused(folder, tmp_path):
    text = tmp_path / "pictures.tar"
    text.write_text("no zip")
    assert f"data.root={text}: not a zip, or a damaged one" in fails(list_images, str(text))
    archive = zipped(folder, tmp_path / "whole.zip")
    cut = tmp_path / "cut.zip"
    cut.write_bytes(archive.read_bytes()[:-200])
    assert f"data.root={cut}: not a zip, or a damaged one" in fails(list_images, str(cut))


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/etc/1.png", "a\\1.png", "C:/1.png"])
def test_a_zip_with_names_that_point_outside_is_refused(folder, tmp_path, name):
    archive = zipped(folder, tmp_path / "evil.zip")
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(name, b"")
    message = fails(list_images, str(archive))
    assert f"{archive}: the entry {name!r} points outside of the zip" in message


# --- decoding -------------------------------------------------------------------------------------


def pixels(image: Image.Image, kind: str = "PNG", size: int = 8, channels: int = 3, **options: object):
    result = decode_image(encoded(image, kind, **options), size, channels, "x")
    assert result.dtype == np.uint8 and result.shape == (channels, size, size)
    return result


def planes(image: Image.Image) -> np.ndarray:
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def test_an_image_of_the_right_size_keeps_its_pixels():
    for mode, channels in [("RGB", 3), ("L", 1)]:
        image = noise(1, mode=mode)
        assert np.array_equal(pixels(image, channels=channels), planes(image))
    grey = noise(2, mode="L")
    assert np.array_equal(pixels(grey), np.repeat(planes(grey), 3, axis=0))
    colour = noise(3)
    assert np.array_equal(pixels(colour, channels=1), planes(colour.convert("L")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_shown_over_black(kind):
    image = noise(4, mode="RGBA")
    red, alpha = planes(image)[0].astype(int), planes(image)[3].astype(int)
    kept = pixels(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    assert np.abs(kept[0] - red * alpha / 255).max() <= 1
    assert (kept[:, alpha == 0] == 0).all()


def test_grey_with_transparency_is_shown_over_black():
    image = noise(5, mode="LA")
    grey, alpha = planes(image).astype(int)
    assert np.abs(pixels(image, channels=1)[0] - grey * alpha / 255).max() <= 1


def test_palettes_are_applied():
    image = noise(6).quantize(16)
    assert np.array_equal(pixels(image), planes(image.convert("RGB")))
    first = np.asarray(image) == 0
    kept = pixels(image, transparency=0)
    assert first.any() and (kept[:, first] == 0).all()
    assert np.array_equal(kept[:, ~first], planes(image.convert("RGB"))[:, ~first])


def test_16_bit_grey_is_scaled():
    wide = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        kept = pixels(Image.fromarray(wide), kind, channels=1)
        assert np.array_equal(kept[0], np.rint(wide / 257).astype(np.uint8))
    assert kept.max() == 255


def test_big_endian_16_bit_grey_is_scaled():
    wide = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    tags = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (273, 200), (278, 8), (279, 128)]
    fields = b"".join(
        struct.pack(">HHI", tag, 4, 1) + struct.pack(">I", value) for tag, value in sorted(tags)
    )
    head = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + fields + bytes(4)
    content = head.ljust(200, b"\0") + wide.astype(">u2").tobytes()
    assert np.array_equal(decode_image(content, 8, 1, "x")[0], np.rint(wide / 257).astype(np.uint8))


def test_one_bit_images_are_black_and_white():
    image = noise(7, mode="L").convert("1")
    kept = pixels(image, channels=1)
    assert np.array_equal(kept[0], np.where(np.asarray(image), 255, 0)) and set(kept.flat) == {
        0,
        255,
    }


def test_cmyk_is_converted():
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        red, green, blue = pixels(cyan, kind).mean(axis=(1, 2))
        assert red < 40 and green > 120 and blue > 150, kind


def test_one_pixel_is_enlarged():
    kept = pixels(Image.new("RGB", (1, 1), (9, 8, 7)), size=5)
    assert (kept == np.array([9, 8, 7])[:, None, None]).all()


def test_exif_orientation_is_applied():
    image = noise(8)
    for orientation, turned in [(1, 0), (6, 270), (3, 180), (8, 90)]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(pixels(image, exif=exif), planes(image.rotate(turned, expand=True)))


def test_the_short_side_is_resized_and_the_centre_cropped():
    # Black, then 16 columns of a ramp, then white: only the middle is kept.
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = np.arange(16) * 16
    wide[:, 32:] = 255
    for image in (Image.fromarray(wide), Image.fromarray(wide.T)):
        kept = pixels(image, channels=1)[0]
        ramp = kept.mean(axis=0 if image.width == 48 else 1)
        assert np.abs(ramp[1:-1] - (np.arange(8) * 32 + 8)[1:-1]).max() < 3
    small = noise(9, 20, 12)
    middle = small.resize((8, 8), Image.Resampling.BICUBIC, box=(4, 0, 16, 12))
    assert np.array_equal(pixels(small), planes(middle))
    assert np.array_equal(
        pixels(noise(1, 4, 4)), planes(noise(1, 4, 4).resize((8, 8), Image.Resampling.BICUBIC))
    )


def test_the_first_frame_of_an_animation_is_taken():
    first, second = Image.new("L", (8, 8), 200), Image.new("L", (8, 8), 10)
    assert (pixels(first, "GIF", save_all=True, append_images=[second], channels=1) == 200).all()


def test_a_broken_image_is_named(folder, monkeypatch):
    good, path = encoded(noise(1, 64, 64), "JPEG"), folder / "train/b/5.png"
    contents = [b"", b"no image", good[: len(good) // 2], encoded(noise(1, 64, 64))[:-4000]]
    contents.append(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))
    for content in contents:
        path.write_bytes(content)
        message = fails(load, folder)
        assert message.startswith(f"{path}: not a readable image (") and "repair or remove it" in message
    path.write_bytes(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert f"{path}: not a readable image (Image size (4096 pixels)" in fails(load, folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_by_workers_and_for_zips(folder, tmp_path, workers):
    path = folder / "train/c/1.png"
    path.write_bytes(b"no image")
    archive = zipped(folder, tmp_path / "pictures.zip")
    for root, place in [(folder, str(path)), (archive, f"{archive}, train/c/1.png")]:
        train, _ = load(root, in_memory=False, workers=workers)
        assert f"{place}: not a readable image" in fails(list, train.read_in_order(10))
        assert len(next(train.read_in_order(10))) == 10
        assert f"{place}: not a readable image" in fails(load, root, True, workers)


def test_a_missing_file_is_named(folder, tmp_path):
    train, _ = load(folder, in_memory=False)
    (folder / "train/a/0.png").unlink()
    assert f"{folder}/train/a/0.png: not readable" in fails(list, train.read_in_order(10))
    archive = zipped(folder, tmp_path / "x.zip")
    content = archive.read_bytes()
    damaged = content.replace((folder / "train/b/0.png").read_bytes()[40:90], bytes(50))
    assert damaged != content
    archive.write_bytes(damaged)
    assert f"{archive}, train/b/0.png: not readable (Bad CRC-32" in fails(load, archive)


def test_a_killed_worker_is_reported_in_one_line(folder, monkeypatch):
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    train, _ = load(folder, in_memory=False, workers=1)
    monkeypatch.setattr(image_files, "decode_image", kill)
    assert "data.workers=1: a worker process was killed" in fails(lambda: list(train.read_in_order(4)))


# --- sets: in memory, cached, streamed ------------------------------------------------------------


def test_a_set_holds_the_images_in_order(folder):
    train, test = load(folder)
    assert (train.name, test.name, len(train), len(test)) == ("images/train", "images/test", 36, 12)
    assert train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert train.images.shape == (36, 3, 8, 8) and train.shape == (3, 8, 8)
    expected = Image.open(folder / "train/a/10.png")
    assert np.array_equal(train.images[10].numpy(), planes(expected))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_equals_its_folder(folder, tmp_path, method):
    archive = zipped(folder, tmp_path / "pictures.zip", "top/", method)
    for plain, packed in zip(load(folder), load(archive, workers=2), strict=True):
        assert torch.equal(plain.images, packed.images)
        assert torch.equal(plain.labels, packed.labels) and plain.hash == packed.hash


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The names of the images that this process decoded."""
    names = []

    def decode_and_note(content: bytes, size: int, channels: int, name: str) -> np.ndarray:
        names.append(name)
        return decode_image(content, size, channels, name)

    monkeypatch.setattr(image_files, "decode_image", decode_and_note)
    return names


def test_images_are_decoded_once(folder, tmp_path, opened):
    first = load(folder)
    assert len(opened) == 48
    again = load(folder)
    assert len(opened) == 48 and [s.hash for s in first] == [s.hash for s in again]
    load(folder, size=4)
    assert len(opened) == 96
    archive = zipped(folder, tmp_path / "x.zip")
    for _ in range(2):
        load(archive)
        assert len(opened) == 144


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_decoded_images(folder):
    train, test = load(folder)
    cached = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert {str(path) for path in (cache_dir() / "images").glob("*.npy")} & cached
    assert len(train) and len(test)


def test_a_changed_file_is_decoded_again(folder, tmp_path, opened):
    before, path = load(folder)[0], folder / "train/a/4.png"
    bitmaps = [encoded(noise(seed), "BMP") for seed in (1, 2)]
    for content in bitmaps:  # equal size and modification time: only the inode's time of change differs
        path.write_bytes(content)
        os.utime(path, (10**9, 10**9))
        after = load(folder)[0]
        assert np.array_equal(after.images[4].numpy(), planes(Image.open(path)))
        assert torch.equal(after.images[5:], before.images[5:])
    archive = tmp_path / "x.zip"
    hashes = set()
    for content in bitmaps:
        path.write_bytes(content)
        hashes.add((load(zipped(folder, archive))[0].origin, load(archive)[0].hash))
    assert len(hashes) == 2 and len({h for pair in hashes for h in pair}) == 4


def test_the_cache_has_no_partial_files(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    (folder / "test/c/3.png").write_bytes(b"no image")
    fails(load, folder)
    names = {path.suffix for path in (tmp_path / "cache/images").iterdir()}
    assert names == {".npy", ".lock"}
    assert (
        len(list((tmp_path / "cache/images").glob("*.npy"))) == 1
    )  # that of the training split, which is complete


@pytest.mark.parametrize(("memory", "kind"), [(4 * 48 * 192, ImageSet), (4 * 48 * 192 - 4, ImageFiles)])
def test_sets_are_loaded_into_at_most_a_quarter_of_memory(folder, monkeypatch, memory, kind):
    monkeypatch.setattr(image_files, "physical_memory", lambda: memory)
    assert [type(split) for split in load(folder, in_memory=None)] == [kind] * 2
    assert isinstance(load(folder, in_memory=True)[0], ImageSet)


def test_physical_memory_is_plausible():
    assert 2**28 < image_files.physical_memory() < 2**50


def test_streamed_images_and_images_in_memory_have_one_origin(folder):
    memory, streamed = load(folder), load(folder, in_memory=False)
    assert [s.origin for s in memory] == [s.origin for s in streamed]
    origins = {memory[0].origin, memory[1].origin, load(folder, size=4)[0].origin}
    (folder / "train/a/4.png").rename(folder / "train/a/4b.png")
    origins.add(load(folder, in_memory=False)[0].origin)
    (folder / "train/a/4b.png").rename(folder / "train/b/44.png")
    origins.add(load(folder, in_memory=False)[0].origin)
    (folder / "train/a/5.png").write_bytes(encoded(noise(77, 20, 20)))
    origins.add(load(folder, in_memory=False)[0].origin)
    assert len(origins) == 6


def test_a_copy_of_a_folder_is_the_same_set(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    for mine, theirs in zip(load(folder), load(copy, in_memory=False), strict=True):
        assert mine.origin == theirs.origin  # so a run resumes after its images have moved


def test_subsets_in_memory_and_streamed_are_equal(folder, opened):
    memory, streamed = load(folder)[0], load(folder, in_memory=False)[0]
    for count in (7, 35, 36, None):
        one, other = memory.subset(count), streamed.subset(count)
        assert isinstance(other, ImageSet) and one.hash == other.hash and one.name == other.name
    read = len(opened)
    assert read == 48 + 7 + 35  # the whole set was in the cache
    streamed.subset(7)
    assert len(opened) == read
    assert "images/train has only 36 images; give at most 36" in fails(streamed.subset, 37)


def small(root: Path, *more: str):
    images = f"data=images data.root={root} data.size=8 batch_size=10 budget.images=110"
    return tiny(*images.split(), *more)


@pytest.mark.parametrize(
    ("objective", "flip", "workers"),
    [
        ("diffusion", "true", 2),
        ("diffusion", "false", 0),
        ("masked", "true", 0),
        ("masked", "false", 2),
    ],
)
def test_batches_in_memory_and_streamed_are_equal(folder, objective, flip, workers):
    """Over three epochs, started at step 0 and at step 7."""
    keys = (f"objective={objective}", f"data.flip={flip}", f"data.workers={workers}")
    memory, streamed = (
        build_data(small(folder, *keys, f"data.in_memory={kind}")) for kind in ("true", "false")
    )
    assert isinstance(memory.train, ImageSet) and isinstance(streamed.train, ImageFiles)
    assert memory.train.origin == streamed.train.origin
    config, cpu = small(folder, *keys), torch.device("cpu")
    for start in (0, 7):
        one, other = memory.batches(config, start, cpu), streamed.batches(config, start, cpu)
        assert len(one) == len(other) == 11 - start
        for (x, y), (x_streamed, y_streamed) in zip(one, other, strict=True):
            assert torch.equal(x, x_streamed) and torch.equal(y, y_streamed)
            assert x.dtype == x_streamed.dtype and len(x) == 10


def test_batch_slices_in_memory_and_streamed_are_equal(folder):
    config = small(folder, "objective=diffusion", "data.flip=true", "trainer.accumulate=5")
    batch_slice, cpu = BatchSlice(rank=1, world_size=2, micro_batches=5), torch.device("cpu")
    batches = [
        build_data(replace(config, data=replace(config.data, in_memory=kind))).batches(
            config, 8, cpu, batch_slice
        )
        for kind in (True, False)
    ]
    assert [len(each) for each in batches] == [15, 15]
    for (x, y), (x_streamed, y_streamed) in zip(*batches, strict=True):
        assert torch.equal(x, x_streamed) and torch.equal(y, y_streamed) and len(x) == 1


@pytest.mark.parametrize("objective", ["diffusion", "masked"])
def test_data_flip_mirrors_about_half(folder, objective):
    parts = []
    for flip in ("false", "true"):
        config = small(folder, f"objective={objective}", f"data.flip={flip}")
        batches = build_data(config).batches(config, 0, torch.device("cpu"))
        parts.append(torch.cat([x.flatten(1) for x, _ in batches]))
    assert 30 < (parts[0] != parts[1]).any(dim=1).sum() < 80  # of 110


def test_streaming_leaves_the_global_generator_alone(folder):
    train, _ = load(folder, in_memory=False, workers=1)
    state = torch.random.get_rng_state()
    list(train.read_in_order(20))
    assert torch.equal(torch.random.get_rng_state(), state)


# --- checks against the configuration -------------------------------------------------------------


def test_classes_are_counted_and_checked(folder):
    config = small(folder)
    assert config.data.classes == 3
    assert len(build_splits(config)[0]) == 36
    put(folder, "train/d/1.png", "train/d/2.png")
    message = fails(build_splits, config)
    assert (
        message
        == f"data.classes=3: {folder} has 4 classes; choose another data.root, or train with data.classes=4"
    )


def test_too_few_images_are_refused(folder, tmp_path):
    put(folder, "train/d/1.png")
    message = fails(load, folder, True, 0, 8, 4)
    assert f"data.root={folder}: class d has 1 training images; each class requires at least two" in message
    few = put(tmp_path / "few", *(f"{label}/{i}.png" for label in "ab" for i in range(9)))
    assert f"data.root={few}: no test images" in fails(load, few, True, 0, 8, 2)


# --- Fashion-MNIST and CIFAR-10 -------------------------------------------------------------------

IDX = {"train": "train", "test": "t10k"}


def put_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write = gzip.compress if suffix else bytes
    head = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (folder / f"{IDX[split]}-images-idx3-ubyte{suffix}").write_bytes(write(head + images.tobytes()))
    head = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
    (folder / f"{IDX[split]}-labels-idx1-ubyte{suffix}").write_bytes(write(head + labels.tobytes()))


@pytest.fixture
def fashion(tmp_path) -> Path:
    """Idx files of 130 and 40 images of noise, and the same as PNGs named by their index."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 40)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        put_idx(tmp_path / "idx", split, images, labels)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / f"png/{split}/{label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path


def test_fashion_mnist_equals_a_folder_of_pngs(fashion):
    same = "data.patch=4", "objective=masked", "data.flip=true", "batch_size=50", "data.codebook=16"
    known = tiny("data=fashion_mnist", f"data.root={fashion}/idx", *same)
    folder = tiny(*("data=images", f"data.root={fashion}/png", "data.size=28", "data.channels=1", *same))
    one, other = build_data(known), build_data(folder)
    for mine, theirs in [(one.train, other.train), (one.test, other.test)]:
        assert torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)
        assert mine.hash == theirs.hash and mine.labels.tolist() == sorted(mine.labels.tolist())
    assert len(one.train) == 130 and torch.equal(one.codebook, other.codebook)
    cpu = torch.device("cpu")
    for (x, y), (x_png, y_png) in zip(one.batches(known, 0, cpu), other.batches(folder, 0, cpu), strict=True):
        assert torch.equal(x, x_png) and torch.equal(y, y_png)


@pytest.mark.parametrize(("place", "suffix"), [("", ".gz"), ("FashionMNIST/raw", ""), ("", "")])
def test_fashion_mnist_is_found_compressed_and_in_torchvisions_folder(tmp_path, place, suffix):
    images = np.arange(20 * 28 * 28, dtype=np.uint8).reshape(20, 28, 28)
    labels = np.arange(20, dtype=np.uint8) % 10
    for split in IDX:
        put_idx(tmp_path / place, split, images, labels, suffix)
    train, test = load_fashion_mnist(str(tmp_path))
    assert np.array_equal(train.images.numpy()[:, 0], images[np.argsort(labels, kind="stable")])
    assert torch.equal(train.images, test.images)
    assert (train.name, test.name) == ("fashion_mnist/train", "fashion_mnist/test")


@pytest.mark.parametrize("packed", [False, True])
def test_broken_idx_files_are_named(fashion, packed):
    root = fashion / "idx"
    paths = [root / "train-images-idx3-ubyte", root / "t10k-labels-idx1-ubyte"]
    for path in paths:
        whole = path.read_bytes()
        written = path
        if packed:
            path.unlink()
            written = path.with_name(path.name + ".gz")
        broken = [whole[:-1], whole + b"x", whole[:3], b"", b"\0\0\x0d" + whole[3:]]
        broken = [gzip.compress(content) if packed else content for content in broken]
        if packed:
            broken += [gzip.compress(whole)[:-50], whole, gzip.compress(whole)[:10] + b"\xff" * 99]
        messages = []
        for content in broken:
            written.write_bytes(content)
            messages.append(fails(load_fashion_mnist, str(root)))
            assert messages[-1].startswith(f"{written}: ")
        size = 130 * 28 * 28 if "images" in path.name else 40
        for message, found in zip(messages, (size - 1, size + 1), strict=False):
            assert f"{found:,} bytes of values, but the sizes in its header make {size:,}" in message
        assert all("not an idx file of N" in message for message in messages[2:5])
        written.unlink()
        message = fails(load_fashion_mnist, str(root))
        assert f"data.root={root}: no {path.name}" in message and "dataset-fashion-mnist" in message
        path.write_bytes(whole)


def test_idx_files_of_other_sets_are_refused(fashion):
    root = fashion / "idx"
    images, labels = np.zeros((40, 28, 28), np.uint8), np.zeros(40, np.uint8)
    for wrong in [(images, labels[:39]), (images, labels + 10), (images[:, :27], labels)]:
        put_idx(root, "test", *wrong)
        assert str(root) in fails(load_fashion_mnist, str(root))
    put_idx(root, "test", images[:0], labels[:0])
    assert "t10k-images-idx3-ubyte: not an idx file" in fails(load_fashion_mnist, str(root))


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = fails(load_fashion_mnist, None)
    assert "data.root=null: FashionMNIST cannot be downloaded" in message
    assert "Name or service not known" in message and "give data.root=FOLDER" in message
    assert "package dataset-fashion-mnist" in message
    message = fails(load_cifar10, None)
    assert "CIFAR10 cannot be downloaded" in message and "cifar-10-python.tar.gz" in message
    for split in IDX:
        images, labels = np.ones((9, 28, 28), np.uint8), np.ones(9, np.uint8)
        put_idx(tmp_path / "datasets/FashionMNIST/raw", split, images, labels)
    assert len(load_fashion_mnist(None)[0]) == 9  # an earlier download is used


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> Path:
    """A CIFAR-10 with 20 images per file; torchvision is patched to expect its MD5 sums."""
    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def pickled(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        data = rng.integers(0, 256, (20, 3072), np.uint8)
        labels = rng.permutation(np.arange(20) % 10).tolist()
        return [name, pickled(name, {"data": data, "labels": labels})]

    names = [name for name, _ in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = {"filename": "batches.meta", "key": "label_names"}
    md5 = pickled("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {**meta, "md5": md5})
    archive = tmp_path / "archive" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_cifar10_is_read_in_the_order_of_its_classes(cifar):
    train, test = load_cifar10(str(cifar))
    assert (len(train), len(test), train.name) == (100, 20, "cifar10/train")
    files = sorted((cifar / "cifar-10-batches-py").glob("data_batch_*"))
    batches = [pickle.loads(path.read_bytes()) for path in files]
    labels = np.concatenate([batch["labels"] for batch in batches])
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    order = np.argsort(labels, kind="stable")
    assert np.array_equal(train.images.numpy(), images[order])
    assert np.array_equal(train.labels.numpy(), labels[order]) and train.labels.dtype == torch.int64
    for other in ("cifar-10-batches-py", "archive", "archive/cifar-10-python.tar.gz", "archive"):
        assert load_cifar10(str(cifar / other))[0].hash == train.hash
    assert not (cifar / "archive/cifar-10-batches-py").exists()  # the folder may be read-only


def test_broken_cifar10_is_refused(cifar):
    (cifar / "empty").mkdir()
    assert f"data.root={cifar}/empty: no cifar-10-batches-py" in fails(load_cifar10, f"{cifar}/empty")
    batch = cifar / "cifar-10-batches-py/data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    message = fails(load_cifar10, str(cifar))
    assert f"data.root={cifar}: no cifar-10-batches-py with the MD5" in message
    archive = cifar / "archive/cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert f"{archive}: not the CIFAR-10 archive" in fails(load_cifar10, str(archive.parent))


def test_each_name_loads_its_own_images(fashion, cifar):
    assert {len(split) for split in build_splits(tiny())} == {1442, 355}
    config = compose(["data=fashion_mnist", f"data.root={fashion}/idx"])
    assert [split.name for split in build_splits(config)] == [
        "fashion_mnist/train",
        "fashion_mnist/test",
    ]
    config = compose(["data=cifar10", f"data.root={cifar}"])
    assert [split.name for split in build_splits(config)] == ["cifar10/train", "cifar10/test"]


# --- real images ----------------------------------------------------------------------------------


def real(name: str) -> Path:
    folder = os.environ.get("ELTLAB_DATA")
    if not folder:
        pytest.skip("ELTLAB_DATA is not set: the folder with real images")
    path = Path(folder) / name
    if not path.is_file():
        pytest.skip(f"ELTLAB_DATA={folder} has no {name}")
    return path


def test_imagenette_is_read_from_its_zip():
    path = real("imagenette_128_jpeg.zip")
    train, test = load_images(image_config(path, 64, 10))
    assert (len(train), len(test)) == (9469, 3925)
    assert torch.bincount(train.labels).tolist()[:3] == [963, 955, 993]
    some = train.subset(12)
    # Photographs, not noise: neighbouring pixels are similar.
    assert some.images.float().std() > 40
    assert (some.images[..., 1:].float() - some.images[..., :-1].float()).abs().mean() < 30


def test_cifar10_jpeg_is_read(tmp_path):
    names: list[str] = []
    with tarfile.open(real("cifar10_jpeg.tar.xz")) as tar:
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


# --- a run and its images -------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_a_run_is_evaluated_after_its_images_have_moved(folder, tmp_path, in_memory):
    """The same images may be in another place; different images are refused."""
    from eltlab.runs.row_files import read_rows

    small = "data.size=8 data.patch=2 model.width=16 model.heads=2 model.mlp_width=24 batch_size=8"
    rest = "budget.images=32 sampler.steps=2 metrics.samples=10 trainer.grids=0 evaluate_loops=[1]"
    where = [f"data.root={folder}", f"runs_dir={tmp_path / 'runs'}", f"data.in_memory={in_memory}"]
    fit.main(["data=images", "objective=diffusion", *small.split(), *rest.split(), *where])
    [config] = (tmp_path / "runs").rglob("config.yaml")
    moved = folder.rename(tmp_path / "moved")
    evaluate.main([f"run={config.parent}", f"data.root={moved}", "loops=2"])
    assert [row["loops"] for row in read_rows(config.parent / "rows.jsonl")] == [1, 2]
    (moved / "train/a/0.png").unlink()
    with pytest.raises(UserError, match="other images than the run was trained on"):
        evaluate.main([f"run={config.parent}", f"data.root={moved}", "loops=3"])
