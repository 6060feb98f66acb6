"""Real images and videos from the folder ELTLAB_DATA. A test skips if the variable is not set."""

import os
import zipfile
from pathlib import Path

import pytest


def shared_file(name: str) -> Path:
    folder = os.environ.get("ELTLAB_DATA")
    if not folder:
        pytest.skip("ELTLAB_DATA is not set: the folder with real images")
    path = Path(folder, name)
    if not path.exists():
        pytest.fail(f"ELTLAB_DATA={folder} has no {name}")
    return path


def imagenette() -> Path:
    """A zip of 13,394 photographs in ten classes, 128 pixels wide and high."""
    return shared_file("imagenette_128_jpeg.zip")


def sprite_sheets() -> str:
    """data.root of data=sprites: the layers of all figures."""
    return str(shared_file("sprites_sheets.tar"))


def photographs(root: Path, classes: int = 3, train: int = 12, test: int = 4) -> Path:
    """A folder of this many Imagenette photographs per class."""
    with zipfile.ZipFile(imagenette()) as archive:
        by_class: dict[tuple[str, str], list[str]] = {}
        for name in archive.namelist():
            *_, split, label, _ = name.split("/")
            by_class.setdefault((split, label), []).append(name)
        for split, count in (("train", train), ("val", test)):
            for label in sorted({label for part, label in by_class if part == split})[:classes]:
                for name in by_class[split, label][:count]:
                    path = root / split / label / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
    return root
