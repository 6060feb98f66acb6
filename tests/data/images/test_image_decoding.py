"""Image files of all modes and formats become square pixels of the requested size and channels."""

import struct

import numpy as np
import pytest
from PIL import Image
from support.errors import fails
from support.image_files import encoded, load, noise, planes

from eltlab.data.images.image_decoding import decode_image


def pixels(image: Image.Image, kind: str = "PNG", size: int = 8, channels: int = 3, **options: object):
    result = decode_image(encoded(image, kind, **options), size, channels, "x")
    assert result.dtype == np.uint8 and result.shape == (channels, size, size)
    return result


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
    assert np.array_equal(kept[0], np.where(np.asarray(image), 255, 0)) and set(kept.flat) == {0, 255}


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
    tiny = noise(1, 4, 4)
    assert np.array_equal(pixels(tiny), planes(tiny.resize((8, 8), Image.Resampling.BICUBIC)))


def test_the_first_frame_of_an_animation_is_taken():
    first, second = Image.new("L", (8, 8), 200), Image.new("L", (8, 8), 10)
    assert (pixels(first, "GIF", save_all=True, append_images=[second], channels=1) == 200).all()


def test_a_broken_image_is_named(image_folder, monkeypatch):
    good, path = encoded(noise(1, 64, 64), "JPEG"), image_folder / "train/b/5.png"
    contents = [b"", b"no image", good[: len(good) // 2], encoded(noise(1, 64, 64))[:-4000]]
    contents.append(encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"))
    for content in contents:
        path.write_bytes(content)
        message = fails(load, image_folder)
        assert message.startswith(f"{path}: not a readable image (") and "repair or remove it" in message
    path.write_bytes(good)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert f"{path}: not a readable image (Image size (4096 pixels)" in fails(load, image_folder)
