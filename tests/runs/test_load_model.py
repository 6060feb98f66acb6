"""A loaded run is a model to sample from."""

from pathlib import Path

import torch
from support.errors import fails

import eltlab
from eltlab import export
from eltlab.runs.checkpoints import read_checkpoint


def test_load_gives_a_model_to_sample_from(trained_run: Path) -> None:
    model = eltlab.load(trained_run)
    images = model.sample([1, 2, 3], loops=2, steps=4, seed=5)
    assert images.shape == (3, 1, 8, 8) and images.dtype == torch.uint8
    assert torch.equal(images[1:], model.sample([2, 3], loops=2, steps=4, seed=5, indices=[1, 2]))
    assert not torch.equal(images, model.sample([1, 2, 3], loops=2, steps=4, seed=6))


def test_each_average_of_a_run_can_be_loaded_and_exported(trained_run: Path, tmp_path: Path) -> None:
    state = read_checkpoint(trained_run / "checkpoints" / "last.ckpt")["state_dict"]
    assert not torch.equal(state["ema.0.token.weight"], state["ema.1.token.weight"])
    for number, length in enumerate([0.05, 0.1]):
        model = eltlab.load(trained_run, ema_length=length)
        assert torch.equal(model.backbone.token.weight, state[f"ema.{number}.token.weight"])
        file = tmp_path / f"{length}.safetensors"
        export.main([f"run={trained_run}", f"out={file}", f"ema.length={length}"])
        exported = eltlab.load(file, ema_length=length)
        assert torch.equal(exported.backbone.token.weight, model.backbone.token.weight)
        assert exported.config.ema.length == length
    first = eltlab.load(trained_run).backbone.token.weight
    assert torch.equal(first, state["ema.0.token.weight"])
    message = fails(eltlab.load, tmp_path / "0.1.safetensors", "auto", 0.05)
    assert "holds the average of ema_length=0.1" in message
    assert "ema.length=0.2: the run keeps no such average" in fails(eltlab.load, trained_run, "auto", 0.2)
