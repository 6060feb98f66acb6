"""Grids of images as PNG files, of clips as animated GIF or MP4 files. Free of torch."""

import io
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from eltlab.common.atomic_files import atomic_path, write_atomic

if TYPE_CHECKING:
    from torch import Tensor

TILE = 48  # pixels a side that small images are enlarged to, at least
MARGIN = 4
FPS = 8  # of clips that are looked at
TURNS = 4  # how often an MP4 shows a clip; a GIF begins again by itself


def suffixes(frames: int) -> tuple[str, ...]:
    """The kinds of file that a grid of images, or of clips of so many frames, can be; the usual one first."""
    return (".png",) if frames == 1 else (".gif", ".mp4")


def save_grid(path: Path, rows: "list[Tensor]", names: list[str]) -> None:
    """Writes one row of images a tensor (uint8 [N, C, H, W], or of clips [N, F, C, H, W]), its name at
    the left. The path's ending, one of `suffixes`, says the kind of file."""
    if rows[0].dim() == 4:
        write_atomic(path, as_png(canvas(rows, names)))
        return
    frames = [canvas([row[:, t] for row in rows], names) for t in range(rows[0].shape[1])]
    if path.suffix.lower() == ".mp4":
        save_mp4(path, frames)
    else:
        write_atomic(path, as_gif(frames))


def canvas(rows: "list[Tensor]", names: list[str]) -> Image.Image:
    """One picture of rows of images, uint8 [N, C, H, W]."""
    size = rows[0].shape[-1]
    tile = size * max(1, -(-TILE // size))
    left = max(int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in names)
    left += 2 * MARGIN if left else 0
    pitch = tile + MARGIN
    columns = max(len(row) for row in rows)
    whole = Image.new("RGB", (left + columns * pitch + MARGIN, len(rows) * pitch + MARGIN), "white")
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = MARGIN + i * pitch
        ImageDraw.Draw(whole).text((MARGIN, top + tile // 2 - 6), name, fill="black")
        for j, image in enumerate(row):
            whole.paste(
                picture(image).resize((tile, tile), Image.Resampling.NEAREST),
                (left + MARGIN + j * pitch, top),
            )
    return whole


def picture(image: "Tensor") -> Image.Image:
    """uint8 [1 or 3, H, W] → an RGB picture."""
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).convert("RGB")


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def as_gif(frames: list[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    first, *others = frames
    duration = 1000 // FPS  # milliseconds
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    return buffer.getvalue()


def save_mp4(path: Path, frames: list[Image.Image]) -> None:
    """H.264, which every browser plays; it takes even sides alone."""
    import av

    width, height = (side - side % 2 for side in frames[0].size)
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(FPS), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames * TURNS:
            whole = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            file.mux(stream.encode(whole))
        file.mux(stream.encode(None))
