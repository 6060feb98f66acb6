"""Decodes image files to pixels, uint8 [C, size, size]."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eltlab.common.errors import UserError, first_line

TRANSFORM = "short side and centre crop, bicubic, 1"  # change the number whenever pixels change


def decode_image(content: bytes, size: int, channels: int, name: str) -> np.ndarray:
    """uint8 [channels, size, size]: upright, transparency over black, resized and centre-cropped. An image
    of this size keeps its pixels. Raises UserError. name: the file, for the message."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return resize_and_crop(ImageOps.exif_transpose(image), size, channels)
    except Exception as error:  # Pillow's readers raise almost anything for a broken file
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UserError(f"{name}: not a readable image ({reason}); repair or remove it") from error


def resize_and_crop(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 [channels, size, size] of an upright image, by `TRANSFORM`."""
    image = _to_opaque_8_bits(image).convert("L" if channels == 1 else "RGB")
    pixels = np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _to_opaque_8_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 or 32 bits; Pillow's own conversion clips at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit pixels, whose white level is unknown")
        return Image.fromarray(np.rint(grey / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose white level is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image
