"""Features are extracted once per set of pixels and network, and do not depend on how images are stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.classifier_metrics import CPU, half
from torch import Tensor, nn

from eltlab.config.schema import DataConfig
from eltlab.data.images.image_files import Images, load_images
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation.features import Extractor, Subset


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1).mean(1, keepdim=True)


def whole(images: Images, extractor: Extractor) -> Tensor:
    return Subset(images, len(images), extractor).features()


def write_classes(folder: Path, classes: int, count: int) -> None:
    """Writes BMP files of one size into class folders."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for n in range(count):
            image = np.full((8, 8), 20 * n + 100 * label, dtype=np.uint8)
            Image.fromarray(image).save(folder / str(label) / f"{n}.bmp")


def test_features_do_not_depend_on_memory_format(digits, digit_metrics):
    _, test = digits
    plain = test.images.clone(memory_format=torch.contiguous_format)
    assert plain.stride() != test.images.stride()
    assert torch.equal(digit_metrics.network.features(plain), digit_metrics.network.features(test.images))


def test_reference_features_are_extracted_once(digits, digit_metrics, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    first = whole(half(train, 0), digit_metrics.network)
    assert [path.suffix for path in sorted((tmp_path / "features").iterdir())] == [".lock", ".npy"]
    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "extract", None)
        assert torch.equal(whole(half(train, 0), digit_metrics.network), first)
    # A different reference or extractor has its own file.
    assert not torch.equal(whole(half(train, 1), digit_metrics.network), first)
    other = Extractor("other", nn.Flatten(), CPU, 100)
    assert whole(half(train, 0), other).shape == (721, 64)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 3


def test_features_follow_the_pixels_and_not_the_names_of_their_files(digits, digit_metrics):
    """Replacing an image by one of the same name and size does not change the origin of a set."""
    train, _ = digits
    one, other = (
        whole(ImageSet("x", part.images, part.labels, origin="files"), digit_metrics.network)
        for part in (half(train, 0).subset(300), half(train, 1).subset(300))
    )
    assert not torch.equal(one, other)


def test_a_subset_is_that_of_the_set(digits, digit_metrics):
    """Only its images are read, and in its order."""
    train, _ = digits
    part, expected = Subset(train, 100, digit_metrics.network), train.subset(100)
    assert torch.equal(part.labels, expected.labels)
    assert torch.equal(part.features(), digit_metrics.network.features(expected.images))


@pytest.mark.parametrize("in_memory", [False, True])
def test_features_follow_files_that_change_in_place(tmp_path, in_memory):
    """The new file has the same size, so the set has the same name and other pixels."""
    for split, count in (("train", 4), ("test", 2)):
        write_classes(tmp_path / split, 2, count)
    means = Extractor("means", Means(), CPU, 2)

    def seen() -> Tensor:
        train, _ = load_images(
            DataConfig(
                "images",
                str(tmp_path),
                size=8,
                channels=1,
                classes=2,
                workers=0,
                in_memory=in_memory,
            )
        )
        features = whole(train, means)
        assert torch.equal(features, Means()(torch.cat(list(train.read_in_order(2)))))
        return features

    before = seen()
    path = tmp_path / "train" / "0" / "0.bmp"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert (seen() != before).any(dim=1).tolist() == [True, *[False] * 7]
