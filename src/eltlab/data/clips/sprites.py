"""Sprites (Li & Mandt, arXiv 1803.02991): 11,664 clips of walking, casting and slashing figures, 8×64×64.

Every figure is layers of Liberated Pixel Cup sheets, body, trousers, top, hair and shoes, over black:
6⁴ = 1,296 figures, each in three actions seen from three sides. The figures of the training split are
none of those of the test split.
"""

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eltlab.common.cache import cache_dir, make_once
from eltlab.common.errors import UserError, first_line
from eltlab.common.hashing import digest
from eltlab.common.progress import Bar
from eltlab.data.images.image_set import ImageSet

SIZE, FRAMES, VARIANTS = 64, 8, 6
LAYERS = ("body", "bottomwear", "topwear", "hair")  # from the skin outwards; each has VARIANTS
SHOES = "shoes/1.png"  # the same for all
SHEET = (21 * SIZE, 13 * SIZE)  # height and width of a sheet
TRAIN, SEED = 1000, 423  # figures of the training split, the first of a permutation
ACTIONS = {  # of each side: front, left, right, the row of its cells; and the columns of its frames
    "walk": ((10, 9, 11), (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcard": ((2, 1, 3), (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash": ((14, 13, 15), (0, 1, 2, 3, 4, 5, 4, 0)),
}
SIDES = ("front", "left", "right")
CLASSES = [f"{action} {side}" for action in ACTIONS for side in SIDES]
RECIPE = "sprites, 1"  # another number where other pixels come out


def load_sprites(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test): 9,000 and 2,664 clips, uint8 [N, 8, 3, 64, 64], by class.

    root: the folder of the sheets, or a tar of it. Composed once, then mapped from the cache. Raises
    UserError where a sheet is missing or is another.
    """
    sheets = read_sheets(root)
    order = np.random.RandomState(SEED).permutation(VARIANTS ** len(LAYERS))
    key = digest(RECIPE, *[part for name in sorted(sheets) for part in (name, sheets[name])])
    return _split("train", sheets, order[:TRAIN], key), _split("test", sheets, order[TRAIN:], key)


def _split(name: str, sheets: dict[str, np.ndarray], figures: np.ndarray, key: str) -> ImageSet:
    path = cache_dir() / "sprites" / f"{name}-{key}.npy"
    make_once(path, lambda place: _write(place, name, sheets, figures))
    # Mapped: what trains on tokens reads it once, and processes beside each other share it.
    clips = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    labels = torch.arange(len(CLASSES)).repeat_interleave(len(figures))
    return ImageSet(f"sprites/{name}", clips, labels, origin=digest(key, name))


def _write(path: Path, name: str, sheets: dict[str, np.ndarray], figures: np.ndarray) -> None:
    shape = (len(CLASSES), len(figures), FRAMES, 3, SIZE, SIZE)
    clips = np.empty(shape, dtype=np.uint8)
    with Bar(f"compose sprites/{name}", len(figures), unit="figures") as bar:
        for place, figure in enumerate(figures):
            clips[:, place] = compose(sheets, int(figure))
            bar.update(place + 1)
    with path.open("wb") as file:
        np.save(file, clips.reshape(-1, *shape[2:]))


def compose(sheets: dict[str, np.ndarray], figure: int) -> np.ndarray:
    """uint8 [9, 8, 3, 64, 64]: a figure in every class. Its number has the variants as digits of base 6."""
    variants = np.unravel_index(figure, (VARIANTS,) * len(LAYERS))
    names = [f"{layer}/{i}.png" for layer, i in zip(LAYERS, variants, strict=True)]
    whole = Image.new("RGBA", SHEET[::-1], (0, 0, 0, 255))
    for name in (*names, SHOES):
        whole = Image.alpha_composite(whole, Image.fromarray(sheets[name]))
    pixels = np.asarray(whole)[..., :3].transpose(2, 0, 1)
    return np.stack([np.stack(list(_frames(pixels, *cells))) for cells in cells_of_classes()])


def cells_of_classes() -> list[tuple[int, tuple[int, ...]]]:
    """The row and the columns of each class."""
    return [(row, columns) for rows, columns in ACTIONS.values() for row in rows]


def _frames(pixels: np.ndarray, row: int, columns: tuple[int, ...]) -> Iterator[np.ndarray]:
    for column in columns:
        top, left = row * SIZE, column * SIZE
        yield pixels[:, top : top + SIZE, left : left + SIZE]


# --- the sheets -------------------------------------------------------------------------------------


def sheet_names() -> list[str]:
    return [SHOES, *(f"{a}/{i}.png" for a, i in itertools.product(LAYERS, range(VARIANTS)))]


def read_sheets(root: str | None) -> dict[str, np.ndarray]:
    """uint8 [1344, 832, 4] of each sheet that is used. Raises UserError."""
    if root is None:
        raise UserError(
            "data.root is missing: data=sprites is composed from sprite sheets; give their folder, or a "
            "tar of it (docs/video.md says where they are from)"
        )
    path = Path(root).expanduser()
    contents = _of_tar(path) if path.is_file() else _of_folder(path)
    return {name: _sheet(contents[name], f"{path}, {name}") for name in sheet_names()}


def _of_folder(path: Path) -> dict[str, bytes]:
    for name in sheet_names():
        if not (path / name).is_file():
            raise _missing(path, name)
    return {name: (path / name).read_bytes() for name in sheet_names()}


def _of_tar(path: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                # The folder itself may be in front of the names.
                name = "/".join(Path(member.name).parts[-2:])
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and name in sheet_names():
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"data.root={path}: not a tar, or a damaged one ({first_line(error)}); give the folder of the "
            "sheets, or a tar of it"
        ) from error
    for name in sheet_names():
        if name not in contents:
            raise _missing(path, name)
    return contents


def _missing(path: Path, name: str) -> UserError:
    return UserError(
        f"data.root={path}: no {name} there; give the folder of the sprite sheets (body, bottomwear, "
        "topwear, hair, shoes), or a tar of it"
    )


def _sheet(content: bytes, place: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            sheet = np.array(opened.convert("RGBA"))
    except Exception as error:  # Pillow's readers raise nearly anything for a broken file
        raise UserError(
            f"{place}: not a readable image ({first_line(error)}); get the sheets anew"
        ) from error
    if sheet.shape[:2] != SHEET:
        height, width = SHEET
        raise UserError(
            f"{place}: {sheet.shape[1]}x{sheet.shape[0]} pixels, where a sheet has {width}x{height}; get "
            "the sheets anew"
        )
    return sheet
