"""Fashion-MNIST and CIFAR-10: read from data.root, or downloaded by torchvision."""

import gzip
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eltlab.common.disk_cache import cache_dir
from eltlab.common.errors import UserError
from eltlab.common.files import file_lock
from eltlab.data.images.image_set import ImageSet, sort_by_class

FASHION_RAW = Path("FashionMNIST") / "raw"  # where torchvision unpacks it
DEBIAN = "Debian's package dataset-fashion-mnist has them in /usr/share/datasets/fashion-mnist"
WITHOUT_DOWNLOAD = {
    "FashionMNIST": f"data.root=FOLDER of the four idx files ({DEBIAN})",
    "CIFAR10": "data.root=FOLDER of cifar-10-python.tar.gz",
}


def load_fashion_mnist(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test), sorted by class. Raises UserError if a file is missing or broken, or the download fails.
    root: a folder with the four idx files, compressed or not, or torchvision's folder."""
    folder = Path(root) if root is not None else _download("FashionMNIST")
    return _read_fashion(folder, "train", "train"), _read_fashion(folder, "test", "t10k")


def load_cifar10(root: str | None) -> tuple[ImageSet, ImageSet]:
    """(train, test), sorted by class. Raises UserError if a file is missing or its MD5 differs, or the
    download fails. root: a folder with cifar-10-batches-py or cifar-10-python.tar.gz."""
    from torchvision.datasets import CIFAR10

    folder = _find_cifar10(Path(root)) if root is not None else _download("CIFAR10")
    sets = []
    for name in ("train", "test"):
        try:
            split = CIFAR10(folder, train=name == "train")
        except RuntimeError as error:
            raise UserError(
                f"data.root={root or folder}: no {CIFAR10.base_folder} with the MD5 sums of CIFAR-10; give "
                f"a folder that has it, or {CIFAR10.filename}"
            ) from error
        images = torch.from_numpy(split.data.transpose(0, 3, 1, 2).copy())
        sets.append(sort_by_class(f"cifar10/{name}", images, torch.tensor(split.targets)))
    return sets[0], sets[1]


def _read_fashion(folder: Path, name: str, prefix: str) -> ImageSet:
    images = _read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte"), (28, 28))
    labels = _read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte"), ())
    if len(images) != len(labels) or labels.max() > 9:
        raise UserError(
            f"data.root={folder}: {prefix}-images and {prefix}-labels do not belong together "
            f"({len(images):,} images, {len(labels):,} labels up to {labels.max()}); download both again"
        )
    return sort_by_class(f"fashion_mnist/{name}", images.unsqueeze(1), labels.long())


def _find_idx(folder: Path, name: str) -> Path:
    for place in (folder / name, folder / FASHION_RAW / name):
        for path in (place, place.with_name(f"{name}.gz")):
            if path.is_file():
                return path
    raise UserError(f"data.root={folder}: no {name} or {name}.gz; {DEBIAN}")


def _read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [N, *shape] of a file: the bytes 0 0 8 and the number of dimensions, the sizes as big-endian
    32-bit integers, then the values. Raises UserError."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: a damaged gzip file ({error}); download it again") from error
    start = 4 + 4 * (1 + len(shape))
    # Padded: a file that is too short gets wrong sizes and is refused below.
    sizes = np.frombuffer(content[4:start].ljust(start - 4), dtype=">u4").tolist()
    if content[:4] != bytes((0, 0, 8, len(sizes))) or tuple(sizes[1:]) != shape or not sizes[0]:
        kind = "x".join(map(str, ("N", *shape)))
        raise UserError(f"{path}: not an idx file of {kind} bytes; download it again")
    if len(content) - start != math.prod(sizes):
        raise UserError(
            f"{path}: {len(content) - start:,} bytes of values, but the sizes in its header make "
            f"{math.prod(sizes):,}; download it again"
        )
    return torch.frombuffer(bytearray(content[start:]), dtype=torch.uint8).view(sizes)


def _find_cifar10(root: Path) -> Path:
    """The folder with cifar-10-batches-py, unpacked into the cache if there is only the archive."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5, extract_archive

    if root.name == CIFAR10.base_folder:
        return root.parent
    archive = root if root.is_file() else root / CIFAR10.filename
    if (root / CIFAR10.base_folder).is_dir() or not archive.is_file():
        return root
    if not check_md5(str(archive), CIFAR10.tgz_md5):
        raise UserError(f"{archive}: not the CIFAR-10 archive (its MD5 differs); download it again")
    folder = cache_dir() / "datasets" / "cifar10-unpacked"
    with file_lock(folder.with_suffix(".lock")):
        if not folder.is_dir():  # renamed when it is complete, so it is never partial
            temporary = folder.with_suffix(".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            extract_archive(str(archive), str(temporary))
            temporary.rename(folder)
    return folder


def _download(name: str) -> Path:
    """The folder in the cache into which torchvision downloads this set and checks its MD5 sums."""
    folder = cache_dir() / "datasets"
    # If the last file that torchvision unpacks exists, its import, which takes seconds, is not needed.
    if name == "FashionMNIST" and (folder / FASHION_RAW / "t10k-labels-idx1-ubyte").is_file():
        return folder
    import torchvision.datasets

    dataset: Any = getattr(torchvision.datasets, name)
    try:
        with file_lock(folder / ".lock"):
            dataset(folder, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        fix = f"give {WITHOUT_DOWNLOAD[name]}"
        raise UserError(f"data.root=null: {name} cannot be downloaded ({reason}); {fix}") from error
    return folder
