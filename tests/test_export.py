"""The exported file: the complete averaged model, loaded without Lightning and without the run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

import eltlab
from eltlab import export, fit
from eltlab.common.errors import UserError
from eltlab.runs.checkpoints import read_checkpoint

SMALL = [*TINY, "evaluate=false", "trainer.grids=0"]


@pytest.fixture(scope="module", params=["masked", "diffusion"])
def exported(request, tmp_path_factory) -> tuple[Path, Path]:
    """A run folder and the file exported from it."""
    folder = tmp_path_factory.mktemp(f"export-{request.param}")
    fit.main([*SMALL, f"objective={request.param}", f"runs_dir={folder / 'runs'}"])
    [config] = (folder / "runs").rglob("config.yaml")
    export.main([f"run={config.parent}", f"out={folder / 'model.safetensors'}"])
    return config.parent, folder / "model.safetensors"


def test_the_file_contains_only_the_averaged_weights_and_the_codebook(exported):
    run, file = exported
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    tensors = load_file(file)
    codes = tensors.pop("codebook", None)
    ema = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("ema.")}
    assert {f"ema.{name}" for name in tensors} == ema.keys()
    assert all(torch.equal(value, ema[f"ema.{name}"]) for name, value in tensors.items())
    known = checkpoint["eltlab"]["codebook"]
    assert (codes is None and known is None) or torch.equal(codes, known)


def test_the_file_alone_samples_as_the_run_does_without_lightning(exported, tmp_path):
    run, file = exported
    expected = eltlab.load(run).sample([3, 7], loops=2, seed=5)
    alone = tmp_path / "alone.safetensors"
    shutil.copy(file, alone)
    code = (
        "import sys; sys.modules['lightning'] = None; sys.modules['pytorch_lightning'] = None\n"
        "import eltlab, torch\n"
        f"images = eltlab.load({str(alone)!r}).sample([3, 7], loops=2, seed=5)\n"
        f"torch.save(images, {str(tmp_path / 'images.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(torch.load(tmp_path / "images.pt", weights_only=True), expected)


def test_a_file_that_is_not_an_export_is_refused_in_one_line(exported, tmp_path):
    _, file = exported
    foreign, torn = tmp_path / "foreign.safetensors", tmp_path / "torn.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    torn.write_bytes(file.read_bytes()[:-100])
    for path, message in [
        (foreign, "not an exported model"),
        (torn, "truncated or not a safetensors file"),
        (tmp_path / "absent.safetensors", "no such file"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            eltlab.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_the_configuration_are_named(exported, tmp_path):
    run, file = exported
    model = eltlab.load(run)
    first = next(iter(model.backbone.state_dict()))
    tensors = {name: value for name, value in load_file(file).items() if name != first}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, tmp_path / "less.safetensors", metadata)
    with pytest.raises(UserError, match=first.replace(".", r"\.")):
        eltlab.load(tmp_path / "less.safetensors")


def test_the_name_must_end_in_safetensors(exported):
    run, _ = exported
    with pytest.raises(UserError, match=r"out=model\.pt: exports are safetensors files"):
        export.main([f"run={run}", "out=model.pt"])
