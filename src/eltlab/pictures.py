"""Grids of images as PNG files."""

import io
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from eltlab.files import write_atomic

TILE = 48  # pixels a side that small images are enlarged to, at least
MARGIN = 4


def save_grid(path: Path, rows: list[Tensor], names: list[str]) -> None:
    """Writes one row of images a tensor (uint8 [N, C, H, W]), its name at the left."""
    size = rows[0].shape[-1]
    tile = size * max(1, -(-TILE // size))
    left = max(int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in names)
    left += 2 * MARGIN if left else 0
    pitch = tile + MARGIN
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB", (left + columns * pitch + MARGIN, len(rows) * pitch + MARGIN), "white"
    )
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = MARGIN + i * pitch
        ImageDraw.Draw(canvas).text((MARGIN, top + tile // 2 - 6), name, fill="black")
        for j, image in enumerate(row):
            canvas.paste(
                picture(image).resize((tile, tile), Image.Resampling.NEAREST),
                (left + MARGIN + j * pitch, top),
            )
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def picture(image: Tensor) -> Image.Image:
    """uint8 [1 or 3, H, W] → an RGB picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")
