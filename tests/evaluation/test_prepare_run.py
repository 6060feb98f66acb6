"""What could stop a run is found before it is trained, and only the main process reads the images."""

from importlib.machinery import ModuleSpec

import pytest
from support.diagnostic_files import train
from support.encoded_sets import on

from eltlab.common import ranks
from eltlab.common.errors import UserError
from eltlab.training import fit as training_fit


@pytest.mark.parametrize("spec", [None, ModuleSpec("wandb", None)], ids=["absent", "a folder"])
def test_wandb_that_is_not_installed_is_one_line(monkeypatch, tmp_path, spec):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(UserError, match="pip install wandb"):
        train(tmp_path, "trainer.wandb=true")
    assert list(tmp_path.iterdir()) == []


def test_only_the_main_process_lists_the_images_of_an_encoded_set(latent_set, tmp_path, monkeypatch) -> None:
    listed: list[object] = []
    monkeypatch.setattr("eltlab.data.build.load_source_splits", lambda config: listed.append(config))
    monkeypatch.setattr(ranks, "is_main_process", lambda: False)
    monkeypatch.setattr("eltlab.training.train.train", lambda *_: None)
    monkeypatch.setattr(
        "eltlab.evaluation.evaluate.evaluate", lambda prepared: listed.append(prepared.splits)
    )
    training_fit.fit(on(latent_set, "metrics.samples=12", f"runs_dir={tmp_path}/runs"))
    assert listed == [None]
