"""The validation losses of a run, by exit and by level of corruption."""

from pathlib import Path

import pytest
import torch
from support.diagnostic_files import lines, train

from eltlab.common.files import atomic_path
from eltlab.common.seeds import generator
from eltlab.data.build import build_data
from eltlab.data.images.image_set import as_input
from eltlab.evaluation import heldout_loss
from eltlab.evaluation.heldout_loss import PairNoise
from eltlab.runs.load_model import load_run
from eltlab.training.validation import LEVELS, Validation

objectives = pytest.mark.parametrize("objective", ["masked", "diffusion"])


@objectives
def test_validation_has_every_exit_at_every_level(objective, tmp_path):
    run = train(tmp_path, f"objective={objective}")
    rows = lines(run.folder / "validation.csv")
    assert sorted({row["images"] for row in rows}) == [32, 64]
    last = [row for row in rows if row["images"] == 64]
    levels = sorted({row["level"] for row in last})
    assert len(levels) == LEVELS and levels[0] > 0 and levels[-1] < 1
    assert {(row["exit"], row["level"]) for row in last} == {
        (exit, level) for exit in (1, 2, 3, 4) for level in levels
    }
    teacher = {row["level"]: row["loss"] for row in last if row["exit"] == 4}
    for row in last:
        assert row["gap"] == pytest.approx(row["loss"] - teacher[row["level"]], abs=1e-9)


@objectives
def test_validation_is_the_loss_of_the_averaged_weights_on_held_out_images(objective, tmp_path):
    run = train(tmp_path, f"objective={objective}")
    model, _ = load_run(run.folder, run.config)
    x, labels = build_data(run.config).held_out(Validation.IMAGES)
    order = torch.randperm(len(x), generator=generator("validation", "order"))[2::LEVELS]
    u = (2 + (torch.arange(len(order)) + 0.5) / len(order)) / LEVELS
    noise = PairNoise(order, slice(0, len(order)), model.device)
    inputs, target = model.objective.corrupt(as_input(x[order]), noise, u)
    with torch.inference_mode():
        done = model.backbone(*inputs, labels_B=labels[order], exits=(3,))
    level = model.objective.level(u).mean().item()
    [row] = [
        row
        for row in lines(run.folder / "validation.csv")
        if row["images"] == 64 and row["exit"] == 3 and row["level"] == pytest.approx(level, abs=1e-4)
    ]
    assert row["loss"] == pytest.approx(model.objective.losses(done.exits[3], target).mean().item())


@objectives
def test_validation_in_small_batches_equals_validation_at_once(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(Validation, "IMAGES", 42)
    whole = lines(train(tmp_path / "a", f"objective={objective}").folder / "validation.csv")
    monkeypatch.setattr(heldout_loss, "VALUES", 2**12)
    parts = lines(train(tmp_path / "b", f"objective={objective}").folder / "validation.csv")
    assert parts == [pytest.approx(row, rel=1e-5, abs=2e-6) for row in whole]


@pytest.mark.integration
@objectives
def test_validation_does_not_change_training(objective, tmp_path):
    looked = train(tmp_path / "a", f"objective={objective}", "trainer.validations=8")
    blind = train(tmp_path / "b", f"objective={objective}", "trainer.validations=0")
    assert looked.folder.name == blind.folder.name
    assert not (blind.folder / "validation.csv").exists()
    weights = [load_run(run.folder, run.config)[0].backbone for run in (looked, blind)]
    for one, other in zip(*(list(net.parameters()) for net in weights), strict=True):
        assert torch.equal(one, other)


@pytest.mark.integration
def test_a_killed_run_leaves_the_validation_of_an_undisturbed_one(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", "trainer.checkpoint_seconds=0")
    calls = []

    def killed(path: Path):
        """Fails just before the sixth checkpoint is renamed, which is after the first validation."""
        calls.append(path.name)
        if calls.count("last.ckpt") == 6:
            raise KeyboardInterrupt
        return atomic_path(path)

    with monkeypatch.context() as patch:
        patch.setattr("eltlab.training.callbacks.atomic_path", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", "trainer.checkpoint_seconds=0")
    resumed = train(tmp_path / "killed", "trainer.checkpoint_seconds=0")
    files = [(run.folder / "validation.csv").read_text() for run in (whole, resumed)]
    assert files[0] == files[1] and files[0].count("\n") > 1
