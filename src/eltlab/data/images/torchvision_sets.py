"""Fashion-MNIST and CIFAR-10: read where data.root says, else downloaded by torchvision."""

import gzip
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eltlab.common.cache import cache_dir
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.data.images.image_set import ImageSet, by_class

FASHION_RAW = Path("FashionMNIST") / "raw"  # where torchvision puts them


def load_fashion_mnist(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test), by class. root: a folder with the four idx files, .gz or not, or torchvision's.

    Raises UserError where a file is missing or broken, or nothing can be downloaded.
    """
    folder = Path(root) if root is not None else _downloaded("FashionMNIST")
    return _fashion_split(folder, "train", "train"), _fashion_split(folder, "test", "t10k")


def load_cifar10(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test), by class. root: a folder with cifar-10-batches-py or cifar-10-python.tar.gz.

    torchvision checks the files' MD5. Raises UserError where they are missing or others, or nothing
    can be downloaded.
    """
    from torchvision.datasets import CIFAR10

    folder = _cifar10_folder(Path(root)) if root is not None else _downloaded("CIFAR10")
    try:
        splits = [CIFAR10(folder, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"data.root={root or folder}: no {CIFAR10.base_folder} there with the MD5 sums of CIFAR-10; "
            f"give a folder that holds it, or {CIFAR10.filename}"
        ) from error
    train, test = (
        by_class(
            f"cifar10/{name}",
            torch.from_numpy(split.data.transpose(0, 3, 1, 2).copy()),
            torch.tensor(split.targets),
        )
        for name, split in zip(("train", "test"), splits, strict=True)
    )
    return train, test


# --- files that are there ---------------------------------------------------------------------------


def _fashion_split(folder: Path, name: str, prefix: str) -> ImageSet:
    images = _read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte"), (28, 28))
    labels = _read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte"), ())
    if len(images) != len(labels) or labels.max() > 9:
        raise UserError(
            f"data.root={folder}: {prefix}-images and {prefix}-labels do not belong together "
            f"({len(images):,} images, {len(labels):,} labels up to {labels.max()}); get both anew"
        )
    return by_class(f"fashion_mnist/{name}", images.unsqueeze(1), labels.long())


def _find_idx(folder: Path, name: str) -> Path:
    for place in (folder / name, folder / FASHION_RAW / name):
        for path in (place, place.with_name(f"{name}.gz")):
            if path.is_file():
                return path
    raise UserError(
        f"data.root={folder}: no {name} or {name}.gz there; Debian's package dataset-fashion-mnist puts "
        "it into /usr/share/datasets/fashion-mnist"
    )


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [N, *shape]: four bytes 0 0 8 and the dimensions' number, their sizes, then the values."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); get it anew") from error
    start = 4 + 4 * (1 + len(shape))
    sizes = [int(n) for n in np.frombuffer(content[4:start].ljust(start - 4), dtype=">u4")]
    magic = bytes((0, 0, 8, 1 + len(shape)))
    if content[:4] != magic or tuple(sizes[1:]) != shape or not sizes[0]:
        raise UserError(
            f"{path}: not an idx file of {'x'.join(map(str, ('N', *shape)))} bytes; get it anew"
        )
    if len(content) - start != math.prod(sizes):
        raise UserError(
            f"{path}: {len(content) - start:,} bytes of values where its head says "
            f"{math.prod(sizes):,}; get it anew"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(sizes)


def _cifar10_folder(root: Path) -> Path:
    """The folder that holds cifar-10-batches-py, unpacked into the cache where only the archive is."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5, extract_archive

    if root.name == CIFAR10.base_folder:
        return root.parent
    archive = root if root.is_file() else root / CIFAR10.filename
    if (root / CIFAR10.base_folder).is_dir() or not archive.is_file():
        return root
    if not check_md5(str(archive), CIFAR10.tgz_md5):
        raise UserError(f"{archive}: not the CIFAR-10 archive (its MD5 differs); get it anew")
    folder = cache_dir() / "datasets" / "cifar10-unpacked"
    with file_lock(folder.with_suffix(".lock")):
        if not folder.is_dir():  # whole or absent
            temporary = folder.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            extract_archive(str(archive), str(temporary))
            temporary.rename(folder)
    return folder


# --- files that are not -----------------------------------------------------------------------------

MENDS = {
    "FashionMNIST": "data.root=FOLDER of the four idx files (Debian's package dataset-fashion-mnist puts "
    "them into /usr/share/datasets/fashion-mnist)",
    "CIFAR10": "data.root=FOLDER of cifar-10-python.tar.gz",
}


def _downloaded(name: str) -> Path:
    """The folder in the cache that torchvision downloads this set into; it checks the MD5 sums."""
    folder = cache_dir() / "datasets"
    if name == "FashionMNIST" and (folder / FASHION_RAW / "t10k-labels-idx1-ubyte").is_file():
        return folder  # the last one it unpacks: no need to import torchvision, which takes seconds
    import torchvision.datasets

    kind: Any = getattr(torchvision.datasets, name)
    try:
        with file_lock(folder / ".lock"):
            kind(folder, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.root=null: no download of {name} ({reason}); give {MENDS[name]}"
        ) from error
    return folder
