"""Features, the distances computed from them, their cache, and protocol ids."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from conftest import tiny
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from eltlab.common.errors import UserError
from eltlab.common.seeds import generator
from eltlab.config.schema import DataConfig
from eltlab.data.images import image_files
from eltlab.data.images.digits import load_digits
from eltlab.data.images.image_files import load_images
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation import classifier, inception
from eltlab.evaluation.classifier import Classifier, ClassifierMetrics, train_classifier
from eltlab.evaluation.distances import PROTOCOL, frechet, kernel, precision_recall, statistics
from eltlab.evaluation.features import Extractor, Reference, load_or_make
from eltlab.evaluation.inception import InceptionMetrics
from eltlab.evaluation.metrics import build_metrics, check_counts, describe_metrics
from eltlab.evaluation.protocol import protocol_id, sampling_protocol

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[ImageSet, ImageSet]:
    return load_digits()


@pytest.fixture(scope="module")
def metrics(digits) -> ClassifierMetrics:
    """The reference is the training split."""
    train, _ = digits
    return ClassifierMetrics(train, 10, train)


class Means(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().flatten(1).mean(1, keepdim=True)


def write_classes(folder: Path, classes: int, count: int) -> None:
    """Writes BMP files of one size into class folders."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for n in range(count):
            image = np.full((8, 8), 20 * n + 100 * label, dtype=np.uint8)
            Image.fromarray(image).save(folder / str(label) / f"{n}.bmp")


def noisy(images: Tensor, amount: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + amount * noise).clamp(0, 255).round().to(torch.uint8)


def half(split: ImageSet, which: int) -> ImageSet:
    """One of two halves, each with equal shares of the classes."""
    order = split.labels.sort(stable=True).indices[which::2]
    return ImageSet(split.name, split.images[order], split.labels[order])


def fidelity(network: nn.Module, images: Tensor, others: Tensor, **options) -> dict[str, float]:
    """torch-fidelity's own path from images to distances, with this network."""

    class Extractor(torch_fidelity.FeatureExtractorBase):
        get_provided_features_list = staticmethod(lambda: ("features",))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "features")
        can_be_compiled = staticmethod(lambda: False)
        get_dummy_input_for_compile = staticmethod(lambda: None)

        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.network = network

        def forward(self, images):
            return (self.network(images),)

    name = f"test-{id(network)}"
    if name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(name, Extractor)
    return torch_fidelity.calculate_metrics(
        input1=Plain(images),
        input2=Plain(others),
        feature_extractor=name,
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        batch_size=256,
        save_cpu_ram=True,
        verbose=False,
        **options,
    )


class Plain(Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


# --- the distances --------------------------------------------------------------------------------


def test_distance_of_the_reference_to_itself_is_zero(digits, metrics):
    train, _ = digits
    assert abs(metrics.measure(train.images, train.labels)["fd_classifier"]) < 0.01


def test_distance_grows_with_noise(digits, metrics):
    train, _ = digits
    values = [
        metrics.measure(noisy(train.images, amount), train.labels)["fd_classifier"]
        for amount in (0, 15, 40, 100)
    ]
    assert values == sorted(values) and values[-1] > 5 * values[1] > 0


def test_halves_of_the_data_are_close_and_noise_is_far(digits, metrics):
    train, _ = digits
    halves = ClassifierMetrics(train, 10, half(train, 0))
    assert halves.reference != metrics.reference and halves.extractor == metrics.extractor
    other = half(train, 1)
    near = halves.measure(other.images, other.labels)["fd_classifier"]
    pixels = torch.randint(256, other.images.shape, generator=torch.Generator().manual_seed(0))
    far = halves.measure(pixels.to(torch.uint8), other.labels)["fd_classifier"]
    assert 0 < near < far / 50


def test_distance_is_frechets_closed_form(digits, metrics):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of the extracted features."""
    train, _ = digits
    images = noisy(train.images[:400], 20)
    with torch.inference_mode():
        a, b = (metrics.classifier(x).double().numpy() for x in (images, train.images))
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    got = metrics.measure(images, train.labels[:400])["fd_classifier"]
    assert got == pytest.approx(expected, rel=1e-4)


def test_distances_equal_those_of_torch_fidelity_from_images(digits, metrics):
    train, _ = digits
    images, model = noisy(train.images[:300], 20), metrics.classifier
    expected = fidelity(model, images, train.images, kid_subset_size=300)
    features, real = metrics.network.features(images), metrics.real.features
    assert metrics.measure(images, train.labels[:300])["fd_classifier"] == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-6
    )
    assert kernel(features, real) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    # This would fail if samples and reference were swapped.
    assert expected["precision"] != expected["recall"]
    assert precision_recall(features, real) == (expected["precision"], expected["recall"])


def test_kid_draws_subsets_of_a_thousand(digits, metrics):
    train, _ = digits
    images = noisy(train.images[:1100], 20)
    expected = fidelity(metrics.classifier, images, train.images, kid_subset_size=1000)
    got = kernel(metrics.network.features(images), metrics.real.features)
    assert got == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)


def test_features_do_not_depend_on_memory_format(digits, metrics):
    _, test = digits
    plain = test.images.clone(memory_format=torch.contiguous_format)
    assert plain.stride() != test.images.stride()
    assert torch.equal(metrics.network.features(plain), metrics.network.features(test.images))


# --- the floor ------------------------------------------------------------------------------------


def test_floor_is_the_mean_distance_of_balanced_halves(digits, metrics, monkeypatch):
    train, _ = digits
    [(name, floor)] = metrics.distances_between_halves().items()
    features, distances = metrics.real.features, []
    for halving in range(8):
        order = torch.randperm(len(train), generator=generator(0, "halves", halving))
        order = torch.cat([order[train.labels[order] == label] for label in range(10)])
        one, other = statistics(features[order[::2]]), statistics(features[order[1::2]])
        distances.append(frechet(one, other))
    assert name == "fd_halves" and 0 < floor == pytest.approx(np.mean(distances), rel=1e-9)
    # The mean is computed once per reference.
    monkeypatch.setattr(Reference, "_mean_over_halvings", None)
    assert ClassifierMetrics(train, 10, train).distances_between_halves() == {name: floor}


# --- what is cached -------------------------------------------------------------------------------


def test_reference_features_are_extracted_once(digits, metrics, tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    train, _ = digits
    first = Reference(half(train, 0), metrics.network).features
    assert [path.suffix for path in sorted((tmp_path / "features").iterdir())] == [".lock", ".npy"]
    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "extract", None)
        assert torch.equal(Reference(half(train, 0), metrics.network).features, first)
    # A different reference or extractor has its own file.
    assert not torch.equal(Reference(half(train, 1), metrics.network).features, first)
    other = Extractor("other", nn.Flatten(), CPU, 100)
    assert Reference(half(train, 0), other).features.shape == (721, 64)
    assert len(list((tmp_path / "features").glob("*.npy"))) == 3


def test_features_follow_the_pixels_and_not_the_names_of_their_files(digits, metrics):
    """Replacing an image by one of the same name and size does not change the origin of a set."""
    train, _ = digits
    one, other = (
        Reference(ImageSet("x", part.images, part.labels, origin="files"), metrics.network)
        for part in (half(train, 0).subset(300), half(train, 1).subset(300))
    )
    assert one.name == other.name == "x-300-files"
    assert not torch.equal(one.features, other.features)


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
        reference = Reference(train, means)
        assert torch.equal(reference.features, Means()(torch.cat(list(train.read_in_order(2)))))
        return reference.features

    before = seen()
    path = tmp_path / "train" / "0" / "0.bmp"
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert (seen() != before).any(dim=1).tolist() == [True, *[False] * 7]


@pytest.mark.parametrize(("bytes_at_once", "batch"), [(2**26, 256), (64 * 10, 10), (1, 1)])
def test_the_classifier_sees_few_large_images_at_a_time(digits, bytes_at_once, batch, monkeypatch):
    train, _ = digits
    monkeypatch.setattr(image_files, "CHUNK_BYTES", bytes_at_once)
    assert ClassifierMetrics(train, 10, train).network.batch == batch


def test_the_classifier_of_large_clips_is_trained_on_few(monkeypatch):
    clips = torch.zeros(30, 2, 1, 4, 4, dtype=torch.uint8)
    train = ImageSet("x", clips, torch.arange(30) % 3)
    assert len(classifier.training_examples(train)) == 30
    monkeypatch.setattr(classifier, "MAX_CLIPS", 20)
    assert len(classifier.training_examples(train)) == 20
    monkeypatch.setattr(classifier, "MAX_CLIP_BYTES", 12 * 32)
    assert len(classifier.training_examples(train)) == 12


def test_an_interrupted_computation_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_make(fail, "a")
    assert load_or_make(lambda: np.array(1.5), "a") == 1.5 == load_or_make(fail, "a")


# --- the classifier -------------------------------------------------------------------------------


def test_accuracy_on_real_test_digits(digits, metrics):
    _, test = digits
    assert metrics.measure(test.images, test.labels)["accuracy"] > 0.95


def test_accuracy_counts_agreement_with_the_requested_labels(digits, metrics):
    train, _ = digits
    images = train.images[:100]
    with torch.inference_mode():
        model = metrics.classifier
        predicted = model.classify(model(images)).argmax(dim=1)
    wrong = predicted.clone()
    wrong[:25] = (wrong[:25] + 1) % 10
    assert metrics.measure(images, predicted)["accuracy"] == 1
    assert metrics.measure(images, wrong)["accuracy"] == pytest.approx(0.75)


def test_classifier_trains_to_the_same_weights(digits, monkeypatch):
    monkeypatch.setattr(classifier, "EPOCHS", 2)
    part = digits[0].subset(200)
    first = train_classifier(part, 10).state_dict()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = train_classifier(part, 10).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # Neither the global generator nor the number of threads changes.
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 1


def test_classifier_is_trained_once_and_identified_by_its_weights(digits, metrics, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    part = digits[0].subset(150)
    first = ClassifierMetrics(part, 10, part)
    [path] = (tmp_path / "classifiers").glob("*.pt")
    written = path.read_bytes()
    again = ClassifierMetrics(part, 10, part)
    assert again.extractor == first.extractor != metrics.extractor
    assert path.read_bytes() == written
    # Different weights in the file give a different extractor.
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["logits.bias"] += 1
    torch.save(saved, path)
    assert ClassifierMetrics(part, 10, part).extractor != first.extractor


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 7), (3, 32)])
def test_classifier_takes_any_size(channels, size):
    images = torch.randint(256, (2, channels, size, size), dtype=torch.uint8)
    model = Classifier(channels, size, 5).eval()
    features = model(images)
    assert features.shape == (2, 64) and model.classify(features).shape == (2, 5)


class Recorder:
    """A progress bar that records the last update."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.total = Recorder.last = total

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def update(self, done: int) -> None:
        Recorder.done = done


@pytest.mark.parametrize(
    ("images", "epochs", "most", "seen"),
    [(200, 2, 9, 2 * 3 * 64), (200, 2, 5, 5 * 64), (30, 2, 9, 2 * 30)],
)
def test_classifier_trains_for_its_epochs_or_its_steps(digits, monkeypatch, images, epochs, most, seen):
    monkeypatch.setattr(classifier, "EPOCHS", epochs)
    monkeypatch.setattr(classifier, "IMAGE_RECIPE", classifier.IMAGE_RECIPE._replace(max_steps=most))
    monkeypatch.setattr(classifier, "Bar", Recorder)
    train_classifier(digits[0].subset(images), 10)
    assert Recorder.done == Recorder.last == seen


# --- one interface --------------------------------------------------------------------------------


class Small(nn.Module):
    """Replaces Inception: the features are the pixels, and has_classes stands for the weights."""

    name = "small-1"
    class_hash = "small-2"

    def __init__(self, has_classes: bool) -> None:
        super().__init__()
        self.has_classes = has_classes

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 64

    def logits(self, features: Tensor) -> Tensor:
        return features[:, :10]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(inception, "load_inception", lambda weights: Small(weights == "classes"))


def test_inception_measures_all_its_distances(small, digits):
    train, test = digits
    found = InceptionMetrics("classes", train, CPU).measure(test.images, test.labels)
    expected = fidelity(Small(True), test.images, train.images, kid_subset_size=len(test))
    names = {
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for ours, theirs in names.items():
        assert found[ours] == pytest.approx(expected[theirs], rel=1e-6), ours
    score = torch_fidelity.metric_isc.isc_features_to_metric(Small(True)(test.images)[:, :10])
    assert found["isc"] == pytest.approx(score["inception_score_mean"], rel=1e-6)
    without = InceptionMetrics(None, train, CPU).measure(test.images, test.labels)
    assert found.keys() - without.keys() == {"isc"}


def test_extractors_share_one_interface(small, digits, metrics):
    train, test = digits
    for extractor, expected in {
        "classifier": r"fd_classifier [\d.]+, accuracy 0\.\d+",
        "inception": r"fid [\d.]+, kid -?[\d.]+, precision [\d.]+, recall [\d.]+",
    }.items():
        built = build_metrics(tiny(f"metrics.extractor={extractor}"), train, CPU)
        values = built.measure(test.images, test.labels)
        assert (
            np.isfinite(list(values.values())).all()
            and not values.keys() & built.distances_between_halves().keys()
        )
        assert re.fullmatch(expected, describe_metrics(values))
        assert built.reference == metrics.reference
        assert built.extractor.startswith("small-1" if extractor == "inception" else "classifier-")


@pytest.mark.parametrize(
    ("overrides", "images", "message"),
    [
        (["metrics.samples=9"], 100, "metrics.samples=9: too few"),
        (["metrics.reference=9"], 100, "metrics.reference=9: too few"),
        ([], 9, "data.name=digits: a reference of 9 images is too small"),
    ],
)
def test_too_few_images_are_refused(overrides, images, message):
    config = tiny("metrics.extractor=inception")
    for override in overrides:
        key, value = override.split("=")
        setattr(config.metrics, key.removeprefix("metrics."), int(value))
    with pytest.raises(UserError, match=message) as caught:
        check_counts(config, images)
    assert "\n" not in str(caught.value)


def test_the_fewest_images_are_enough(small, digits):
    train, test = digits
    config = tiny("metrics.extractor=inception")
    config.metrics.samples = config.metrics.reference = 10
    built = build_metrics(config, train, CPU)
    values = built.measure(test.images[:10], test.labels[:10])
    assert np.isfinite(list(values.values())).all()


# --- the protocol ---------------------------------------------------------------------------------

GIVEN = {"samples": 100, "precision": "32-true", "extractor": "a-1", "reference": "b-2"}
OTHER = {"samples": 101, "precision": "bf16-mixed", "extractor": "a-2", "reference": "b-3"}


def changed(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else value + "-other"


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
def test_protocol_id_changes_with_every_field_but_the_loops(objective):
    sampler = tiny(f"objective={objective}").sampler
    ids = [protocol_id(sampling_protocol(sampler, **GIVEN))]
    for field in fields(sampler):
        if field.name not in ("loops", "halting"):
            other = replace(sampler, **{field.name: changed(getattr(sampler, field.name))})
            ids.append(protocol_id(sampling_protocol(other, **GIVEN)))
    for name, value in OTHER.items():
        ids.append(protocol_id(sampling_protocol(sampler, **{**GIVEN, name: value})))
    assert len(ids) >= 10 and len(set(ids)) == len(ids)
    for spent in ({"loops": 2}, {"loops": [1, 2, 3, 4]}, {"halting": 0.1}):
        same = sampling_protocol(replace(sampler, **spent), **GIVEN)
        assert protocol_id(same) == ids[0]


def test_protocol_id_does_not_depend_on_the_order_of_its_fields():
    protocol = sampling_protocol(tiny().sampler, **GIVEN)
    assert protocol_id(protocol) == protocol_id(dict(reversed(protocol.items())))


def test_the_settings_of_distances_are_in_the_extractor(small, digits, monkeypatch):
    train, _ = digits
    extractor = InceptionMetrics(None, train, CPU).extractor
    assert extractor == f"small-1, {PROTOCOL}"
    for setting in ("kid 100x1000 seed 2020", "k 3", "isc 10 splits", torch_fidelity.__version__):
        assert setting in extractor
    monkeypatch.setattr(inception.distances, "PROTOCOL", "kid 100x500")
    assert InceptionMetrics(None, train, CPU).extractor == "small-1, kid 100x500"
