"""Fashion-MNIST and CIFAR-10 with images of noise (a pytest plugin)."""

import gzip
import hashlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IDX = {"train": "train", "test": "t10k"}


def put_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, suffix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write = gzip.compress if suffix else bytes
    head = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
    (folder / f"{IDX[split]}-images-idx3-ubyte{suffix}").write_bytes(write(head + images.tobytes()))
    head = struct.pack(">4BI", 0, 0, 8, 1, len(labels))
    (folder / f"{IDX[split]}-labels-idx1-ubyte{suffix}").write_bytes(write(head + labels.tobytes()))


@pytest.fixture
def fashion_folder(tmp_path) -> Path:
    """Idx files of 130 and 40 images of noise, and the same as PNGs named by their index."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 130), ("test", 40)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.permutation(np.arange(count) % 10).astype(np.uint8)
        put_idx(tmp_path / "idx", split, images, labels)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / f"png/{split}/{label}/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return tmp_path


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch) -> Path:
    """A CIFAR-10 with 20 images per file; torchvision is patched to expect its MD5 sums."""
    from torchvision.datasets import CIFAR10

    rng, folder = np.random.default_rng(0), tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def pickled(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str) -> list[str]:
        data = rng.integers(0, 256, (20, 3072), np.uint8)
        labels = rng.permutation(np.arange(20) % 10).tolist()
        return [name, pickled(name, {"data": data, "labels": labels})]

    names = [name for name, _ in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", [batch(name) for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    meta = {"filename": "batches.meta", "key": "label_names"}
    md5 = pickled("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "meta", {**meta, "md5": md5})
    archive = tmp_path / "archive" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path
