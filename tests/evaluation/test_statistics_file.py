"""Statistics come from the files of pytorch-fid and ADM, and other files are refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.classifier_metrics import CPU, inception_metrics
from support.errors import fails
from support.small_inception import Small
from support.tiny_run import tiny

from eltlab.common.errors import UserError
from eltlab.evaluation import inception
from eltlab.evaluation.features import Extractor
from eltlab.evaluation.metrics import check_metrics
from eltlab.evaluation.statistics_file import read_statistics_file
from eltlab.evaluation.streamed_statistics import streamed_statistics


def write_adm(path: Path, images: torch.Tensor, mu: np.ndarray, sigma: np.ndarray) -> Path:
    """ADM's evaluations write these arrays; mu_s and sigma_s are those of the spatial features."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=pixels, mu=mu, sigma=sigma, mu_s=np.zeros(3), sigma_s=np.eye(3))
    return path


def write(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.integration
def test_a_file_of_adm_gives_the_streamed_distances(small_inception, digits, tmp_path):
    train, test = digits
    own = streamed_statistics(train, Extractor("small", Small(False), CPU, 100))
    path = write_adm(tmp_path / "VIRTUAL.npz", train.images[:50], own["mu"], own["sigma"])
    streamed, read = inception_metrics(train), inception_metrics(train, statistics=str(path))
    expected, found = (metrics.measure(test.images, test.labels) for metrics in (streamed, read))
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-6)
    # The protocol says where the statistics are from, by their content and not by their path.
    again = write_adm(tmp_path / "copy.npz", train.images[:50], own["mu"], own["sigma"])
    assert inception_metrics(train, statistics=str(again)).reference == read.reference != streamed.reference
    assert f"statistics {read_statistics_file(str(path)).hash}" in read.reference
    other = write_adm(tmp_path / "other.npz", train.images[:50], own["mu"] + 1, own["sigma"])
    moved = inception_metrics(train, statistics=str(other))
    assert moved.reference != read.reference
    assert moved.measure(test.images, test.labels)["fid"] > expected["fid"] + 50


def test_a_file_with_images_alone_is_measured(small_inception, digits, tmp_path):
    train, test = digits
    path = write(tmp_path / "images.npz", arr_0=train.images.permute(0, 2, 3, 1).numpy())
    found = inception_metrics(train, statistics=str(path)).measure(test.images, test.labels)
    assert found == pytest.approx(
        inception_metrics(train).measure(test.images, test.labels), rel=1e-9, abs=1e-6
    )


SIGMA = np.eye(4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3), "sigma": SIGMA}, "mu has shape [3] and sigma [4, 4], not [F] and [F, F]"),
        ({"mu": np.zeros((4, 1)), "sigma": SIGMA}, "mu has shape [4, 1]"),
        ({"mu": np.full(4, np.nan), "sigma": SIGMA}, "not finite"),
        ({"mu": np.zeros(4), "sigma": np.triu(np.ones((4, 4)))}, "sigma is not a covariance"),
        ({"mu": np.zeros(4), "sigma": -SIGMA}, "sigma is not a covariance"),
        ({"mu": np.zeros(4)}, "it has no mu and sigma"),
        ({"mu": np.array([{}] * 4), "sigma": SIGMA}, "not a readable .npz file of arrays"),
        ({"arr_0": np.zeros((5, 8, 8, 3))}, "arr_0 is float64 [5, 8, 8, 3], not uint8 [N, H, W, 3]"),
        ({"arr_0": np.zeros((5, 3, 8, 8), np.uint8)}, "arr_0 is uint8 [5, 3, 8, 8]"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, arrays, message):
    path = write(tmp_path / "a.npz", **arrays)
    found = fails(read_statistics_file, str(path))
    assert found.startswith(f"metrics.statistics={path}: ") and message in found and "\n" not in found


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"words", "array"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    if content == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    found = fails(read_statistics_file, str(path))
    assert ("no such file" if content is None else "not a readable .npz") in found and "\n" not in found


def test_a_file_for_another_network_is_refused_before_training(digits, tmp_path, monkeypatch):
    path = write(tmp_path / "a.npz", mu=np.zeros(4), sigma=SIGMA)
    config = tiny("metrics.extractor=inception", f"metrics.statistics={path}")
    with pytest.raises(UserError, match="its mu has 4 values, not 2048"):
        check_metrics(config, *digits, 1, CPU)
    monkeypatch.setattr(inception, "FEATURES", 4)
    monkeypatch.setattr("eltlab.evaluation.metrics.load_inception", lambda weights: None)
    check_metrics(config, *digits, 1, CPU)


def test_images_are_no_statistics_of_clips(digits, tmp_path):
    path = write(tmp_path / "a.npz", arr_0=np.zeros((5, 8, 8, 3), np.uint8))
    config = tiny("metrics.extractor=inception", f"metrics.statistics={path}")
    config.metrics.extractor = "i3d"
    with pytest.raises(UserError, match=r"only metrics.extractor=inception can"):
        check_metrics(config, *digits, 1, CPU)


def test_the_classifier_takes_no_file(tmp_path):
    message = fails(tiny, "metrics.extractor=classifier", "metrics.statistics=a.npz")
    assert message.startswith("metrics.statistics=a.npz: a file applies to inception and i3d only")
    assert (
        tiny("metrics.extractor=classifier", "metrics.statistics=reference").metrics.statistics == "reference"
    )
