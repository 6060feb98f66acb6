"""The metrics of each extractor have one interface, and are checked before training."""

import re

import numpy as np
import pytest
from support.classifier_metrics import CPU
from support.clip_files import put
from support.sprite_runs import SMALL, trained
from support.tiny_run import tiny
from torch import Tensor, nn

from eltlab.common.errors import UserError
from eltlab.evaluation.metrics import build_metrics, check_counts, describe_metrics
from eltlab.runs.compose_config import compose
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit as run_fit


def test_extractors_share_one_interface(small_inception, digits, digit_metrics):
    train, test = digits
    for extractor, expected in {
        "classifier": r"fd_classifier N, fd_classifier_inf N, fd_ideal N, kd_classifier N, "
        r"kd_classifier_se N, memorised N, accuracy N",
        "inception": "fid N, fid_inf N, kid N, precision N, recall N, fd_ideal N, memorised N",
    }.items():
        built = build_metrics(tiny(f"metrics.extractor={extractor}"), train, test, CPU)
        values = built.measure(test.images, test.labels)
        assert np.isfinite(list(values.values())).all()
        assert re.fullmatch(expected.replace("N", r"-?\d+\.\d+"), describe_metrics(values))
        assert built.reference == digit_metrics.reference
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


def test_the_fewest_images_are_enough(small_inception, digits):
    train, test = digits
    config = tiny("metrics.extractor=inception")
    config.metrics.samples = config.metrics.reference = 10
    built = build_metrics(config, train, test, CPU)
    values = built.measure(test.images[:10], test.labels[:10])
    assert np.isfinite(list(values.values())).all()


class NoI3D(nn.Module):
    """Replaces I3D, which takes seconds to be timed."""

    def forward(self, clips: Tensor) -> Tensor:
        return clips.flatten(1)


def test_the_time_of_fvd_is_announced_before_training(few_sprites, tmp_path, capsys, monkeypatch):
    def train(*arguments) -> None:
        raise UserError("training starts")

    monkeypatch.setattr("eltlab.training.train.train", train)
    monkeypatch.setattr("eltlab.evaluation.metrics.load_i3d", lambda weights: NoI3D())
    with pytest.raises(UserError, match="training starts"):
        trained(few_sprites, tmp_path)
    message = capsys.readouterr().err
    assert "FVD: I3D sees 72 real clips, once, and 3 x 18 samples, at " in message
    assert "metrics.extractor=classifier is fast" in message


def test_too_few_clips_for_fvd_are_refused_before_training(tmp_path, monkeypatch):
    names = [f"{split}/{label}/{n}.avi" for split in ("train", "test") for label in "ab" for n in (0, 1)]
    clips = put(tmp_path / "videos", *names)
    keys = ["data=clips", f"data.root={clips}", "data.size=16", "data.frames=8", "data.workers=0"]
    config = compose([*SMALL, *keys, "data.codebook=4", "metrics.reference=null", f"runs_dir={tmp_path}"])
    with monkeypatch.context() as patch:
        patch.setattr("eltlab.evaluation.metrics.MIN_IMAGES", 100)
        with pytest.raises(UserError, match=r"too (few|small) for metrics.extractor=i3d"):
            run_fit(config)
    assert not Run.of(config).folder.exists()
