"""Each name of data= loads its own images, and an encoded set those that it was encoded from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.encoded_sets import make, on
from support.errors import fails
from support.tiny_run import tiny
from support.video_folders import put_ucf101

from eltlab.config.identity import identity
from eltlab.data.build import load_data
from eltlab.data.image_sources import class_names, load_splits, same_data
from eltlab.evaluation.missing_rows import Request
from eltlab.evaluation.prepare_run import prepare_evaluation
from eltlab.runs.compose_config import compose
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run
from eltlab.training.fit import fit


def test_clips_are_composed_and_loaded(clip_folder):
    config = tiny(
        "data=clips", f"data.root={clip_folder}", "data.frames=4", "data.workers=0", "objective=masked"
    )
    assert (config.data.classes, config.data.stride, config.data.split) == (2, 1, 1)
    assert class_names(config.data) == ["a", "b"]
    assert load_splits(config.data)[0].shape == (4, 3, 64, 64)
    ids = {identity(replace(config, data=replace(config.data, stride=s))) for s in (1, 2)}
    ids.add(identity(replace(config, data=replace(config.data, split=2))))
    assert len(ids) == 3
    assert identity(replace(config, data=replace(config.data, root="/elsewhere"))) in ids
    root = put_ucf101(clip_folder / "ucf")
    config = tiny("data=clips", f"data.root={root}", "data.split=3", "objective=masked")
    assert class_names(config.data) == ["Bowling", "Archery"]


def test_origins_of_earlier_versions_are_accepted_for_files_only():
    content, other, earlier = "content-0123456789ab", "content-ba9876543210", "0123456789ab"
    assert same_data(content, content) and same_data(earlier, content)
    assert not same_data(other, content) and not same_data(earlier, "ba9876543210")
    assert not same_data(content, earlier)


@pytest.mark.integration
def test_samples_are_compared_with_the_images_wherever_they_are(
    photo_folder, weights_folder, tmp_path, latent_set
) -> None:
    here = Path(shutil.copytree(photo_folder, tmp_path / "here"))
    root = make(here, weights_folder, tmp_path / "set").root
    there = here.rename(tmp_path / "there")
    config = on(root, "metrics.samples=12", f"runs_dir={tmp_path}/runs", "trainer.grids=0")
    assert f"data.root={here}: does not exist" in fails(fit, config)
    assert not (tmp_path / "runs").exists()
    config = on(root, "metrics.samples=12", f"runs_dir={tmp_path}/runs", f"metrics.images={there}")
    fit(config)
    rows = read_rows(Run.of(config).rows)
    assert {row["kind"] for row in rows} == {"tokenizer", "eval"}
    next((there / "train").rglob("*.jpeg")).write_bytes(b"")
    message = fails(prepare_evaluation, Run.of(config), [Request(config, 1)], 0)
    assert "not the train images" in message and "metrics.images=" in message


def test_each_name_loads_its_own_images(fashion_folder, cifar_folder):
    assert {len(split) for split in load_data(tiny()).images(tiny())} == {1442, 355}
    config = compose(["data=fashion_mnist", f"data.root={fashion_folder}/idx"])
    assert [split.name for split in load_data(config).images(config)] == [
        "fashion_mnist/train",
        "fashion_mnist/test",
    ]
    config = compose(["data=cifar10", f"data.root={cifar_folder}"])
    assert [split.name for split in load_data(config).images(config)] == ["cifar10/train", "cifar10/test"]
