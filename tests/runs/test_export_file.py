"""The exported file: the complete averaged model, loaded without Lightning and without the run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.encoded_sets import on
from support.errors import fails
from support.tiny_run import TINY, find_run

import eltlab
from eltlab import export, fit
from eltlab.common.errors import UserError
from eltlab.data.encoded.manifest import TOKENIZER
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.load_model import load_run
from eltlab.runs.run_folder import Run
from eltlab.training import fit as training_fit

SMALL = [*TINY, "evaluate=false", "trainer.grids=0"]


@pytest.fixture(scope="module", params=["masked", "diffusion"])
def exported_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run folder and the file exported from it."""
    folder = tmp_path_factory.mktemp(f"export-{request.param}")
    fit.main([*SMALL, f"objective={request.param}", f"runs_dir={folder / 'runs'}"])
    run = find_run(folder / "runs")
    export.main([f"run={run}", f"out={folder / 'model.safetensors'}"])
    return run, folder / "model.safetensors"


SETS = {"latents": "latent_set", "tokens": "token_set"}  # the fixtures


@pytest.mark.integration
@pytest.mark.parametrize("kind", SETS)
def test_an_exported_run_does_not_need_its_set(kind, request, tmp_path, monkeypatch) -> None:
    root = Path(shutil.copytree(request.getfixturevalue(SETS[kind]), tmp_path / "set"))
    config = on(
        root,
        *("evaluate=false", f"runs_dir={tmp_path}/runs", "loops=2", "trainer.grids=1"),
        "data.flip=true",
        kind=kind,
    )
    training_fit.fit(config)
    run = Run.of(config)
    labels = [0, 1, 2]
    drawn = eltlab.load(run.folder).sample(labels)
    assert drawn.shape == (3, 3, 16, 16) and drawn.dtype == torch.uint8
    export.main([f"run={run.folder}", f"out={tmp_path}/model.safetensors"])
    moved = root.rename(tmp_path / "elsewhere")
    assert "no complete encoded set" in fails(eltlab.load, run.folder)
    assert torch.equal(eltlab.load(tmp_path / "model.safetensors").sample(labels), drawn)
    config.data.root = str(moved)
    assert torch.equal(load_run(run.folder, config)[0].sample(labels), drawn)
    # Refused: a different set, and the right set with a different tokenizer.
    other = request.getfixturevalue(SETS["tokens" if kind == "latents" else "latents"])
    config.data.root = str(other)
    assert "another encoded set" in fails(load_run, run.folder, config)
    config.data.root = str(moved)
    shutil.copy(other / TOKENIZER, moved / TOKENIZER)
    assert "but the set was encoded with" in fails(load_run, run.folder, config)


def test_the_file_contains_only_the_averaged_weights_and_the_codebook(exported_run):
    run, file = exported_run
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    tensors = load_file(file)
    codes = tensors.pop("codebook", None)
    ema = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("ema.0.")}
    assert {f"ema.0.{name}" for name in tensors} == ema.keys()
    assert all(torch.equal(value, ema[f"ema.0.{name}"]) for name, value in tensors.items())
    known = checkpoint["eltlab"]["codebook"]
    assert (codes is None and known is None) or torch.equal(codes, known)


@pytest.mark.parametrize(
    "exported_run", ["masked", pytest.param("diffusion", marks=pytest.mark.slow)], indirect=True
)
@pytest.mark.integration
def test_the_file_alone_samples_as_the_run_does_without_lightning(exported_run, tmp_path):
    run, file = exported_run
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


def test_a_file_that_is_not_an_export_is_refused_in_one_line(exported_run, tmp_path):
    _, file = exported_run
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


def test_tensors_that_do_not_fit_the_configuration_are_named(exported_run, tmp_path):
    run, file = exported_run
    model = eltlab.load(run)
    first = next(iter(model.backbone.state_dict()))
    tensors = {name: value for name, value in load_file(file).items() if name != first}
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, tmp_path / "less.safetensors", metadata)
    with pytest.raises(UserError, match=first.replace(".", r"\.")):
        eltlab.load(tmp_path / "less.safetensors")
