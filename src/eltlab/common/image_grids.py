"""Grids of images as PNG files, and of clips as animated GIF or MP4 files."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from eltlab.common.files import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

MIN_TILE = 48  # pixels per side; smaller images are enlarged by a whole factor
MARGIN = 4
FPS = 8  # frame rate of the files
MP4_REPEATS = 4  # an MP4 plays once, while a GIF repeats by itself


def grid_suffixes(frames: int) -> tuple[str, ...]:
    """The file types for a grid of images, or of clips of this many frames; the default first."""
    return (".png",) if frames == 1 else (".gif", ".mp4")


def save_grid(path: Path, rows: "list[Tensor]", names: list[str]) -> None:
    """Writes a grid with one row per tensor, its name on the left.

    rows: uint8, [N, C, H, W] for images or [N, F, C, H, W] for clips.
    path: its suffix, one of `grid_suffixes`, selects the file type.
    """
    clips = [row[:, None] if row.dim() == 4 else row for row in rows]
    frames = [draw_grid([clip[:, t] for clip in clips], names) for t in range(clips[0].shape[1])]
    with atomic_path(path) as temporary:
        if rows[0].dim() == 4:
            frames[0].save(temporary, "PNG")
        elif path.suffix.lower() == ".mp4":
            save_mp4(temporary, frames)
        else:
            options = {"append_images": frames[1:], "duration": 1000 // FPS, "loop": 0}
            frames[0].save(temporary, "GIF", save_all=True, **options)


def draw_grid(rows: "list[Tensor]", names: list[str]) -> Image.Image:
    """One picture of rows of images, each uint8 [N, C, H, W]."""
    size = rows[0].shape[-1]
    tile = size * max(1, -(-MIN_TILE // size))  # -(-a // b) rounds a / b up
    left = max(int(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(name)) for name in names)
    left += 2 * MARGIN if left else 0
    pitch = tile + MARGIN
    columns = max(len(row) for row in rows)
    grid = Image.new("RGB", (left + columns * pitch + MARGIN, len(rows) * pitch + MARGIN), "white")
    for i, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = MARGIN + i * pitch
        ImageDraw.Draw(grid).text((MARGIN, top + tile // 2 - 6), name, fill="black")
        for j, image in enumerate(row):
            picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())  # grey → RGB
            enlarged = picture.resize((tile, tile), Image.Resampling.NEAREST)
            grid.paste(enlarged, (left + MARGIN + j * pitch, top))
    return grid


def save_mp4(path: Path, frames: list[Image.Image]) -> None:
    """Writes H.264, which every browser plays."""
    import av

    width, height = (side - side % 2 for side in frames[0].size)  # H.264 requires even sides
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(FPS), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames * MP4_REPEATS:
            even = av.VideoFrame.from_image(frame.crop((0, 0, width, height)))
            file.mux(stream.encode(even))
        file.mux(stream.encode(None))
