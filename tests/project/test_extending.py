"""docs/extending.md: its files train, are measured, exported and resumed as the built-in ones are."""

from pathlib import Path

import pytest
import torch
from support.errors import fails
from support.extension_files import trained
from support.tiny_run import tiny

import eltlab
from eltlab import evaluate, export
from eltlab.common.seeds import SampleNoise
from eltlab.generation.objective import build_objective
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.compose_config import load_config
from eltlab.runs.row_files import read_rows
from eltlab.training.supervision import build_supervision

ARMS = [
    ("supervision={}/chain.py", "objective=masked"),
    ("supervision={}/chain.py", "objective=diffusion", "supervision.weight=0.5"),
    ("objective={}/flow.py", "supervision=ilsd"),
    ("objective={}/flow.py", "supervision={}/chain.py"),
]


@pytest.mark.integration
@pytest.mark.parametrize("overrides", ARMS, ids=" ".join)
def test_the_examples_train_measure_and_load(extension_files: Path, tmp_path: Path, overrides: tuple) -> None:
    run = trained(extension_files, tmp_path, *overrides)
    rows = [row for row in read_rows(run / "rows.jsonl") if row["kind"] == "eval"]
    assert [row["loops"] for row in rows] == [1, 2, 3, 4]
    assert all(row["train_flops_total"] > 0 for row in rows)
    evaluate.main([f"run={run}", "loops=[4to1]"])
    export.main([f"run={run}", f"out={tmp_path / 'model.safetensors'}"])
    images = [eltlab.load(place).sample([3, 7]) for place in (run, tmp_path / "model.safetensors")]
    assert torch.equal(*images)


@pytest.mark.integration
def test_an_extension_resumes_where_it_was_stopped(extension_files: Path, tmp_path: Path) -> None:
    arm = ["objective={}/flow.py", "supervision={}/chain.py", "evaluate=false"]
    whole = trained(extension_files, tmp_path / "whole", *arm)
    half = trained(extension_files, tmp_path / "half", *arm, "budget.images=32")
    # The same run with half the budget: the longer one passed through the state of its checkpoint.
    target = tmp_path / "resumed" / load_config(whole / "config.yaml").name / whole.name
    (target / "checkpoints").mkdir(parents=True)
    (target / "checkpoints" / "last.ckpt").write_bytes((half / "checkpoints" / "last.ckpt").read_bytes())
    resumed = trained(extension_files, tmp_path / "resumed", *arm)
    states = [read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (whole, resumed)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name])


@pytest.mark.integration
def test_an_objective_of_an_old_version_is_evaluated_without_losses_and_not_trained(
    extension_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = ["objective={}/flow.py", "evaluate=false"]
    run = trained(extension_files, tmp_path / "runs", *arm)
    objective = build_objective(load_config(run / "config.yaml"))
    monkeypatch.delattr(type(objective), "losses")  # it had a method loss, of the whole batch
    evaluate.main([f"run={run}", "loops=2"])
    [row] = read_rows(run / "rows.jsonl")
    assert row["heldout_loss"] is row["train_loss"] is None and row["fd_classifier"] > 0
    message = fails(trained, extension_files, tmp_path / "new", *arm)
    assert message.startswith(f"objective={extension_files}/flow.py: has no method losses(pred, target)")
    assert not list((tmp_path / "new").rglob("config.yaml"))


def test_an_extension_counts_what_it_spends(extension_files: Path) -> None:
    config = tiny(f"supervision={extension_files}/chain.py")
    assert config.supervision.spent(4) == ({4: 1.0}, 4, True)
    assert build_supervision(config.supervision, 4, 0, 10).exits(0) == (1, 2, 3, 4)


def test_a_perfect_flow_reproduces_the_data(extension_files: Path) -> None:
    flow = build_objective(tiny(f"objective={extension_files}/flow.py"))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    sampler = tiny("objective=diffusion").sampler

    def perfect(step, inputs):
        z, t = inputs
        return (z - x) / t.view(-1, 1, 1, 1)

    done = flow.sample(perfect, SampleNoise(0, [0, 1, 2]), x.shape[1:], sampler)
    assert torch.allclose(done, x, atol=1e-5)
