"""The bytes of an image file to pixels: uint8 [C, size, size]."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from eltlab.common.errors import UserError, first_line

TRANSFORM = "short side and centre crop, bicubic, 1"  # another number where other pixels come out


def decode(content: bytes, size: int, channels: int, name: str) -> np.ndarray:
    """uint8 [channels, size, size]: upright, transparency over black, resized and centre-cropped.

    An image that has the size already keeps its pixels. Raises UserError naming the file.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return fitted(ImageOps.exif_transpose(opened), size, channels)
    except Exception as error:  # Pillow's readers raise nearly anything for a broken file
        reason = first_line(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "of no known format"
        raise UserError(
            f"{name}: not a readable image ({reason}); mend it or take it away"
        ) from error


def fitted(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """uint8 [channels, size, size] of an upright image: `TRANSFORM`."""
    image = plain(image).convert("L" if channels == 1 else "RGB")
    pixels = np.array(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def plain(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel and without transparency or palette."""
    if image.mode.startswith("I"):
        return _eight_bits(np.asarray(image))
    if image.mode == "F":
        raise ValueError("floating-point pixels, which have no known white")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, (0, 0, 0, 255)), seen)
    return image


def _eight_bits(grey: np.ndarray) -> Image.Image:
    """16-bit grey, scaled; Pillow's own conversion clips at 255."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit pixels, which have no known white")
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))
