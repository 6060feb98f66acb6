"""The validation losses of a run, by exit and by level of corruption."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from support.diagnostic_files import lines, train

from eltlab.common.files import atomic_path
from eltlab.common.seeds import BatchNoise, generator
from eltlab.data.build import build_data
from eltlab.data.images.image_set import as_input
from eltlab.runs.load_model import load_run
from eltlab.training.validation import LEVELS, Validation, micro_batch_count

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
    draw = generator("validation", "corrupt", 2)
    inputs, target = model.objective.corrupt(as_input(x[order]), BatchNoise(draw, len(x[order])), u)
    with torch.inference_mode():
        done = model.backbone(*inputs, labels_B=labels[order], exits=(3,))
    level = model.objective.level(u).mean().item()
    [row] = [
        row
        for row in lines(run.folder / "validation.csv")
        if row["images"] == 64 and row["exit"] == 3 and row["level"] == pytest.approx(level, abs=1e-4)
    ]
    assert row["loss"] == pytest.approx(model.objective.losses(done.exits[3], target).mean().item())


@pytest.mark.parametrize(
    ("objective", "codes", "values"),
    [("masked", 128, 16 * 128), ("masked", 16, 16 * 64), ("diffusion", 16, 16 * 64)],
)
def test_validation_in_micro_batches_equals_validation_at_once(
    objective, codes, values, tmp_path, monkeypatch
):
    """Their size is bounded by the codes per token, or by what a layer works on: 16 + 2 x 24 numbers."""
    monkeypatch.setattr(Validation, "IMAGES", 40)  # eight per level
    passes = []
    losses = Validation.losses

    def counted(self, module, micro_batch, noise, u_B):
        passes.append(len(micro_batch))
        return losses(self, module, micro_batch, noise, u_B)

    monkeypatch.setattr(Validation, "losses", counted)
    overrides = f"objective={objective}", f"data.codebook={codes}"
    whole = lines(train(tmp_path / "a", *overrides).folder / "validation.csv")
    assert passes == [8] * 2 * LEVELS
    monkeypatch.setattr(Validation, "VALUES", 3 * values - 1)  # room for two images, not for three
    micro_batches = lines(train(tmp_path / "b", *overrides).folder / "validation.csv")
    assert passes[2 * LEVELS :] == [2] * 4 * 2 * LEVELS
    assert micro_batches == [pytest.approx(row, rel=1e-5, abs=2e-6) for row in whole]


def test_micro_batches_are_equal_and_drop_few_images():
    for count, at_once in product(range(1, 110), range(1, 40)):
        micro_batches, least = micro_batch_count(count, at_once), math.ceil(count / at_once)
        assert 1 <= count // micro_batches <= at_once and micro_batches <= 2 * least
        assert count % micro_batches <= count % least
    assert micro_batch_count(102, 4) == 34 and micro_batch_count(103, 1) == 103


@objectives
def test_validation_does_not_change_training(objective, tmp_path):
    looked = train(tmp_path / "a", f"objective={objective}", "trainer.validations=8")
    blind = train(tmp_path / "b", f"objective={objective}", "trainer.validations=0")
    assert looked.folder.name == blind.folder.name
    assert not (blind.folder / "validation.csv").exists()
    weights = [load_run(run.folder, run.config)[0].backbone for run in (looked, blind)]
    for one, other in zip(*(list(net.parameters()) for net in weights), strict=True):
        assert torch.equal(one, other)


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
