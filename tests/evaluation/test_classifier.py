"""The classifier behind fd_classifier: what it is trained on and for how long, and what it recognises."""

import pytest
import torch
from support.classifier_metrics import classifier_metrics

from eltlab.config.schema import MetricsConfig
from eltlab.data.images import image_files
from eltlab.data.images.image_set import ImageSet
from eltlab.evaluation import classifier
from eltlab.evaluation.classifier import Classifier, ClassifierMetrics, train_classifier


@pytest.mark.parametrize(("bytes_at_once", "batch"), [(2**26, 256), (64 * 10, 10), (1, 1)])
def test_the_classifier_sees_few_large_images_at_a_time(digits, bytes_at_once, batch, monkeypatch):
    train, _ = digits
    monkeypatch.setattr(image_files, "CHUNK_BYTES", bytes_at_once)
    assert classifier_metrics(train).network.batch == batch


def test_the_classifier_of_large_clips_is_trained_on_few(monkeypatch):
    clips = torch.zeros(30, 2, 1, 4, 4, dtype=torch.uint8)
    train = ImageSet("x", clips, torch.arange(30) % 3)
    assert len(classifier.training_examples(train)) == 30
    monkeypatch.setattr(classifier, "MAX_CLIPS", 20)
    assert len(classifier.training_examples(train)) == 20
    monkeypatch.setattr(classifier, "MAX_CLIP_BYTES", 12 * 32)
    assert len(classifier.training_examples(train)) == 12


@pytest.mark.parametrize(("chosen", "used"), [("reference", "reference"), ("a.npz", None), (None, None)])
def test_beside_i3d_the_statistics_of_the_subset_stay_and_those_of_a_file_do_not(digits, chosen, used):
    """A file has the statistics of the other network."""
    train, test = digits
    metrics = MetricsConfig(extractor="i3d", statistics=chosen, reference=300)
    real = ClassifierMetrics(train, test, 10, metrics).real
    assert real.choice == used and real.streams == (used is None)


# --- the classifier -------------------------------------------------------------------------------


def test_accuracy_on_real_test_digits(digits, digit_metrics):
    _, test = digits
    assert digit_metrics.measure(test.images, test.labels)["accuracy"] > 0.95


def test_accuracy_counts_agreement_with_the_requested_labels(digits, digit_metrics):
    train, _ = digits
    images = train.images[:100]
    with torch.inference_mode():
        model = digit_metrics.classifier
        predicted = model.classify(model(images)).argmax(dim=1)
    wrong = predicted.clone()
    wrong[:25] = (wrong[:25] + 1) % 10
    assert digit_metrics.measure(images, predicted)["accuracy"] == 1
    assert digit_metrics.measure(images, wrong)["accuracy"] == pytest.approx(0.75)


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


def test_classifier_is_trained_once_and_identified_by_its_weights(
    digits, digit_metrics, tmp_path, monkeypatch
):
    monkeypatch.setattr(classifier, "EPOCHS", 1)
    monkeypatch.setenv("ELTLAB_CACHE", str(tmp_path))
    part = digits[0].subset(150)
    first = classifier_metrics(part)
    [path] = (tmp_path / "classifiers").glob("*.pt")
    written = path.read_bytes()
    again = classifier_metrics(part)
    assert again.extractor == first.extractor != digit_metrics.extractor
    assert path.read_bytes() == written
    # Different weights in the file give a different extractor.
    saved = torch.load(path, weights_only=True)
    saved["state_dict"]["logits.bias"] += 1
    torch.save(saved, path)
    assert classifier_metrics(part).extractor != first.extractor


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


def test_the_classifier_of_clips_sees_motion():
    """Reversed clips have the same frames and different features."""
    model = Classifier(channels=3, size=20, classes=4, frames=4).eval()
    clips = torch.randint(256, (2, 4, 3, 20, 20), dtype=torch.uint8)
    features = model(clips)
    assert features.shape == (2, 64) and model.classify(features).shape == (2, 4)
    assert not torch.allclose(features, model(clips.flip(1)), atol=1e-4)
