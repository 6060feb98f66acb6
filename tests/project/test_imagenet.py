"""docs/imagenet.md: its commands run as written, on a few photographs, and so does its study."""

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support import analysis_commands
from support.commands import run
from support.encoded_sets import photographs
from support.quick_studies import SMALL, check_trials
from support.small_inception import Small
from support.small_studies import queue_of
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from eltlab.common.package_info import package_folder
from eltlab.evaluation import inception
from eltlab.runs.compose_config import compose, compose_encode
from eltlab.studies.study import grid_trials, load_study

PAGE = package_folder("docs") / "imagenet.md"
# Ten classes of three photographs for training and one for tests are enough for these.
FEWER = {
    "metrics.samples=100": "metrics.samples=20",
    "metrics.reference=1000": "metrics.reference=30",
    "budget.images=64000": "budget.images=64",
    "sampler.steps=16": "sampler.steps=2",
}
ON_CPU = {"encode": "accelerator=cpu", "fit": "trainer.accelerator=cpu"}


def commands(block: int) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return blocks[block].strip().splitlines()


class SmallPictures(Small):
    """Replaces Inception: the features are the pixels of a picture of 4x4 pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(adaptive_avg_pool2d(images.float(), 4))


@pytest.fixture(
    scope="module",
    params=["pixels", pytest.param("inception", marks=pytest.mark.slow)],
)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the page's three commands have run, on few images.

    Inception needs minutes for them, so in make test the features are pixels.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pixels":
            patch.setattr(inception, "load_inception", lambda weights: SmallPictures(False))
        yield follow_page(tmp_path_factory.mktemp("imagenet"))


def follow_page(place: Path) -> Path:
    images = photographs(place / "images", 10, 3, 1)
    with zipfile.ZipFile(place / "imagenette.zip", "w") as archive:
        for file in images.rglob("*.jpeg"):
            archive.write(file, file.relative_to(images))
    (place / "taesd").symlink_to(Path(os.environ["ELTLAB_DATA"]) / "taesd")
    for line in commands(0):
        for many, few in FEWER.items():
            line = line.replace(many, few)
        python, module, name, *arguments = line.split()
        assert (python, module) == ("python", "-m")
        verb = name.removeprefix("eltlab.")
        if verb == "analysis.table":
            done = analysis_commands.run("table", *arguments, cwd=place)
        else:
            done = run(verb, *arguments, ON_CPU[verb], cwd=place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.integration
def test_three_commands_lead_from_a_zip_to_a_row_with_fid_and_its_floor(place, request) -> None:
    table = pd.read_parquet(place / "imagenette.parquet")
    rows = table[table["kind"] == "eval"]
    assert rows["loops"].tolist() == [1, 2, 3, 4] and (rows["fid"] > 0).all()
    floors = table[table["kind"] == "tokenizer"]
    assert len(floors) == 2 and floors["protocol"].nunique() == 1  # one of the set, one of the run
    assert floors["fid"].nunique() == 1 and (floors["fid"] < rows["fid"].min()).all()
    assert (floors["psnr"] > 15).all()
    measured_by = "inception-" if request.node.callspec.params["place"] == "inception" else "small-1"
    assert rows["protocol_text"].str.contains(f'"extractor": "{measured_by}').all()


def test_the_commands_for_imagenet_are_the_same_three() -> None:
    """Only their keys are checked: ImageNet is not available here."""
    here, there = commands(0), commands(1)
    verbs = [[re.search(r"-m (eltlab\.\S+)", line)[1] for line in lines] for lines in (here, there)]
    assert verbs[0] == verbs[1] == ["eltlab.encode", "eltlab.fit", "eltlab.analysis.table"]
    encoding = [text for text in there[0].split() if "=" in text and not text.startswith("-")]
    config = compose_encode(["data=cifar10", *(text for text in encoding if not text.startswith("data."))])
    assert config.tokenizer.weights == "stabilityai/sd-vae-ft-mse"
    training = [text for text in there[1].split() if "=" in text]
    run = compose([text for text in training if not text.startswith("data.root")])
    assert (run.data.name, run.trainer.nodes, run.trainer.devices) == ("imagenet256_latents", 4, 8)
    assert run.sampler.clip is False


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pixels"], indirect=True)
def test_the_study_trains_on_the_set(place, tmp_path) -> None:
    own = [f"data.root={place / 'imagenette_latents'}", *SMALL, "metrics.samples=20"]
    own += ["metrics.reference=30", "trainer.accelerator=cpu"]
    study = load_study("imagenette", "quick", own, str(tmp_path), {})
    moved = shutil.copytree(place / "imagenette_latents", tmp_path / "moved")
    own[0] = f"data.root={moved}"
    assert load_study("imagenette", "quick", own, str(tmp_path), {}).name == study.name
    assert load_study("imagenette", "quick", own[1:], str(tmp_path), {}).name != study.name
    planned = grid_trials(study)
    arms = [trial.config.name.partition("/")[2] for trial in planned]
    assert arms == ["loops1-final", "loops4-ilsd", "loops4-final"]
    queue_of(study).fill([planned[0], planned[1]])
    done = run("sweep", "imagenette", "preset=quick", *own, f"runs_dir={tmp_path}", "worker=0")
    assert done.returncode == 0, done.stderr
    check_trials(study, tmp_path)
