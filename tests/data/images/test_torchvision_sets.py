"""Fashion-MNIST and CIFAR-10 are read from the files in which they are distributed."""

import gzip
import pickle
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from support.errors import fails
from support.known_sets import IDX, put_idx
from support.tiny_run import tiny

from eltlab.data.build import build_data
from eltlab.data.images.torchvision_sets import load_cifar10, load_fashion_mnist


def test_fashion_mnist_equals_a_folder_of_pngs(fashion_folder):
    same = "data.patch=4", "objective=masked", "data.flip=true", "batch_size=50", "data.workers=0"
    known = tiny("data=fashion_mnist", f"data.root={fashion_folder}/idx", *same)
    png = "data=images", f"data.root={fashion_folder}/png", "data.size=28", "data.channels=1"
    folder = tiny(*png, *same)
    one, other = build_data(known), build_data(folder)
    for mine, theirs in [(one.train, other.train), (one.test, other.test)]:
        assert torch.equal(mine.images, theirs.images) and torch.equal(mine.labels, theirs.labels)
        assert mine.hash == theirs.hash and mine.labels.tolist() == sorted(mine.labels.tolist())
    assert len(one.train) == 130 and torch.equal(one.codebook, other.codebook)
    cpu = torch.device("cpu")
    for (x, y), (x_png, y_png) in zip(one.batches(known, 0, cpu), other.batches(folder, 0, cpu), strict=True):
        assert torch.equal(x, x_png) and torch.equal(y, y_png)


@pytest.mark.parametrize(("place", "suffix"), [("", ".gz"), ("FashionMNIST/raw", ""), ("", "")])
def test_fashion_mnist_is_found_compressed_and_in_torchvisions_folder(tmp_path, place, suffix):
    images = np.arange(20 * 28 * 28, dtype=np.uint8).reshape(20, 28, 28)
    labels = np.arange(20, dtype=np.uint8) % 10
    for split in IDX:
        put_idx(tmp_path / place, split, images, labels, suffix)
    train, test = load_fashion_mnist(str(tmp_path))
    assert np.array_equal(train.images.numpy()[:, 0], images[np.argsort(labels, kind="stable")])
    assert torch.equal(train.images, test.images)
    assert (train.name, test.name) == ("fashion_mnist/train", "fashion_mnist/test")


@pytest.mark.parametrize("packed", [False, True])
def test_broken_idx_files_are_named(fashion_folder, packed):
    root = fashion_folder / "idx"
    paths = [root / "train-images-idx3-ubyte", root / "t10k-labels-idx1-ubyte"]
    for path in paths:
        whole = path.read_bytes()
        written = path
        if packed:
            path.unlink()
            written = path.with_name(path.name + ".gz")
        broken = [whole[:-1], whole + b"x", whole[:3], b"", b"\0\0\x0d" + whole[3:]]
        broken = [gzip.compress(content) if packed else content for content in broken]
        if packed:
            broken += [gzip.compress(whole)[:-50], whole, gzip.compress(whole)[:10] + b"\xff" * 99]
        messages = []
        for content in broken:
            written.write_bytes(content)
            messages.append(fails(load_fashion_mnist, str(root)))
            assert messages[-1].startswith(f"{written}: ")
        size = 130 * 28 * 28 if "images" in path.name else 40
        for message, found in zip(messages, (size - 1, size + 1), strict=False):
            assert f"{found:,} bytes of values, but the sizes in its header make {size:,}" in message
        assert all("not an idx file of N" in message for message in messages[2:5])
        written.unlink()
        message = fails(load_fashion_mnist, str(root))
        assert f"data.root={root}: no {path.name}" in message and "dataset-fashion-mnist" in message
        path.write_bytes(whole)


def test_idx_files_of_other_sets_are_refused(fashion_folder):
    root = fashion_folder / "idx"
    images, labels = np.zeros((40, 28, 28), np.uint8), np.zeros(40, np.uint8)
    for wrong in [(images, labels[:39]), (images, labels + 10), (images[:, :27], labels)]:
        put_idx(root, "test", *wrong)
        assert str(root) in fails(load_fashion_mnist, str(root))
    put_idx(root, "test", images[:0], labels[:0])
    assert "t10k-images-idx3-ubyte: not an idx file" in fails(load_fashion_mnist, str(root))


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = fails(load_fashion_mnist, None)
    assert "data.root=null: FashionMNIST cannot be downloaded" in message
    assert "Name or service not known" in message and "give data.root=FOLDER" in message
    assert "package dataset-fashion-mnist" in message
    message = fails(load_cifar10, None)
    assert "CIFAR10 cannot be downloaded" in message and "cifar-10-python.tar.gz" in message
    for split in IDX:
        images, labels = np.ones((9, 28, 28), np.uint8), np.ones(9, np.uint8)
        put_idx(tmp_path / "datasets/FashionMNIST/raw", split, images, labels)
    assert len(load_fashion_mnist(None)[0]) == 9  # an earlier download is used


def test_cifar10_is_read_in_the_order_of_its_classes(cifar_folder):
    train, test = load_cifar10(str(cifar_folder))
    assert (len(train), len(test), train.name) == (100, 20, "cifar10/train")
    files = sorted((cifar_folder / "cifar-10-batches-py").glob("data_batch_*"))
    batches = [pickle.loads(path.read_bytes()) for path in files]
    labels = np.concatenate([batch["labels"] for batch in batches])
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    order = np.argsort(labels, kind="stable")
    assert np.array_equal(train.images.numpy(), images[order])
    assert np.array_equal(train.labels.numpy(), labels[order]) and train.labels.dtype == torch.int64
    for other in ("cifar-10-batches-py", "archive", "archive/cifar-10-python.tar.gz", "archive"):
        assert load_cifar10(str(cifar_folder / other))[0].hash == train.hash
    assert not (cifar_folder / "archive/cifar-10-batches-py").exists()  # the folder may be read-only


def test_broken_cifar10_is_refused(cifar_folder):
    (cifar_folder / "empty").mkdir()
    message = fails(load_cifar10, f"{cifar_folder}/empty")
    assert f"data.root={cifar_folder}/empty: no cifar-10-batches-py" in message
    batch = cifar_folder / "cifar-10-batches-py/data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    message = fails(load_cifar10, str(cifar_folder))
    assert f"data.root={cifar_folder}: no cifar-10-batches-py with the MD5" in message
    archive = cifar_folder / "archive/cifar-10-python.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert f"{archive}: not the CIFAR-10 archive" in fails(load_cifar10, str(archive.parent))
