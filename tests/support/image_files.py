"""Small image files of noise, and sets of them (a pytest plugin)."""

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eltlab.config.schema import DataConfig
from eltlab.data.images.image_files import load_images
from support.tiny_run import tiny


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
def image_folder(tmp_path) -> Path:
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


def planes(image: Image.Image) -> np.ndarray:
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def small(root: Path, *more: str):
    images = f"data=images data.root={root} data.size=8 data.workers=0 batch_size=10 budget.images=110"
    return tiny(*images.split(), *more)
