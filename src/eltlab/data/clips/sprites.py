"""Sprites (Li & Mandt, arXiv 1803.02991): 11,664 clips of walking, casting and slashing figures, 8×64×64.

A figure is a stack of Liberated Pixel Cup sheets over black: body, trousers, top, hair and shoes. There are
6⁴ = 1,296 figures, each with three actions seen from three sides. No figure is in both splits.
"""

import io
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from eltlab.common.disk_cache import cache_dir, cached_array, digest
from eltlab.common.errors import UserError, first_line
from eltlab.common.progress import Bar
from eltlab.data.images.image_set import ImageSet

SIZE, FRAMES, VARIANTS = 64, 8, 6
LAYERS = ("body", "bottomwear", "topwear", "hair")  # bottom first; each has VARIANTS sheets
SHOES = "shoes/1.png"  # every figure wears these
SHEET = (21 * SIZE, 13 * SIZE)  # height and width of a sheet, a table of cells
TRAIN, SEED = 1000, 423  # the first TRAIN figures of a permutation with this seed are for training
ACTIONS = {  # rows of cells seen from the front, left and right; columns of the eight frames
    "walk": ((10, 9, 11), (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcard": ((2, 1, 3), (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash": ((14, 13, 15), (0, 1, 2, 3, 4, 5, 4, 0)),
}
CLASSES = [f"{action} {side}" for action in ACTIONS for side in ("front", "left", "right")]
RECIPE = "sprites, 1"  # change the number whenever pixels change
Sheets = dict[str, np.ndarray]  # by name, such as hair/1.png; uint8 [1344, 832, 4]


def load_sprites(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test): 9,000 and 2,664 clips, uint8 [N, 8, 3, 64, 64], sorted by class. Composed once, then
    read from the cache. root: the folder of the sheets, or a tar of it. Raises UserError if one is missing
    or broken."""
    sheets = read_sheets(root)
    # The official split was drawn with NumPy's legacy generator.
    figures = np.random.RandomState(SEED).permutation(VARIANTS ** len(LAYERS))
    key = digest(RECIPE, *[part for name in sorted(sheets) for part in (name, sheets[name])])
    train = _load_split("train", sheets, figures[:TRAIN], key)
    return train, _load_split("test", sheets, figures[TRAIN:], key)


def _load_split(name: str, sheets: Sheets, figures: np.ndarray, key: str) -> ImageSet:
    def write(file: BinaryIO) -> None:
        shape = (len(CLASSES), len(figures), FRAMES, 3, SIZE, SIZE)
        clips = np.empty(shape, dtype=np.uint8)
        with Bar(f"compose sprites/{name}", len(figures), unit="figures") as bar:
            for i, figure in enumerate(figures):
                clips[:, i] = compose_figure(sheets, int(figure))
                bar.update(i + 1)
        np.save(file, clips.reshape(-1, *shape[2:]))

    clips = cached_array(cache_dir() / "sprites" / f"{name}-{key}.npy", write, mapped=True)
    labels = torch.arange(len(CLASSES)).repeat_interleave(len(figures))
    return ImageSet(f"sprites/{name}", torch.from_numpy(clips), labels, origin=digest(key, name))


def compose_figure(sheets: Sheets, figure: int) -> np.ndarray:
    """uint8 [9, 8, 3, 64, 64]: one clip per class. The base-6 digits of figure are its variants by layer."""
    variants = np.unravel_index(figure, (VARIANTS,) * len(LAYERS))
    names = [f"{layer}/{i}.png" for layer, i in zip(LAYERS, variants, strict=True)]
    whole = Image.new("RGBA", SHEET[::-1], (0, 0, 0, 255))
    for name in (*names, SHOES):
        whole = Image.alpha_composite(whole, Image.fromarray(sheets[name]))
    pixels = np.asarray(whole)[..., :3].transpose(2, 0, 1)
    # [3, row, column, 64, 64]
    cells = pixels.reshape(3, SHEET[0] // SIZE, SIZE, SHEET[1] // SIZE, SIZE).swapaxes(2, 3)
    clips = [cells[:, row, columns] for rows, columns in ACTIONS.values() for row in rows]
    return np.stack(clips).swapaxes(1, 2)


def read_sheets(root: str | None) -> Sheets:
    """The sheets in a folder or a tar of it. Raises UserError if one is missing or broken."""
    if root is None:
        raise UserError(
            "data.root is missing: data=sprites is composed from sprite sheets; give their folder, or a "
            "tar of it (docs/video.md says where to get them)"
        )
    path = Path(root).expanduser()
    names = [SHOES, *(f"{layer}/{i}.png" for layer in LAYERS for i in range(VARIANTS))]
    if path.is_file():
        contents = _read_tar(path, names)
    else:
        contents = {n: (path / n).read_bytes() for n in names if (path / n).is_file()}
    for name in names:
        if name not in contents:
            raise UserError(
                f"data.root={path}: no {name}; give the folder of the sprite sheets (body, bottomwear, "
                "topwear, hair, shoes), or a tar of it"
            )
    return {name: _decode_sheet(contents[name], f"{path}, {name}") for name in names}


def _read_tar(path: Path, names: list[str]) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                # If the folder itself was packed, all names start with its name.
                name = "/".join(Path(member.name).parts[-2:])
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and name in names:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"data.root={path}: not a tar, or a damaged one ({first_line(error)}); give the folder of the "
            "sheets, or a tar of it"
        ) from error
    return contents


def _decode_sheet(content: bytes, place: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != SHEET[::-1]:
                raise ValueError(f"{image.width}x{image.height} pixels, not {SHEET[1]}x{SHEET[0]}")
            return np.array(image.convert("RGBA"))
    except Exception as error:  # Pillow's readers raise almost anything for a broken file
        raise UserError(
            f"{place}: not a sprite sheet ({first_line(error)}); download the sheets again"
        ) from error
