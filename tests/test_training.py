"""Training steps: averaging, skipped steps, schedules, metrics and checkpoints."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eltlab import fit
from eltlab.common.errors import Diverged
from eltlab.common.seeds import BatchNoise
from eltlab.generation.masked import Masked
from eltlab.runs.compose_config import compose
from eltlab.training.ema import ema_copy, ema_decay, ema_update
from eltlab.training.looped_module import LoopedModule, learning_rate

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.mlp_width=32",
    "model.depth=4",
    "loops=4",
    "batch_size=16",
    "budget.images=320",
    "trainer.grids=0",
    "trainer.log_every=5",
    "trainer.checkpoint_seconds=0",
    "evaluate=false",
    "trainer.validations=0",  # validation computes losses too, which `spoil` would count
]


def run_folder(runs: Path) -> Path:
    [config] = runs.rglob("config.yaml")
    return config.parent


def metrics(runs: Path) -> list[dict[str, str]]:
    with (run_folder(runs) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the ground-truth loss of these steps NaN. ILSD calls it twice per step."""
    honest, calls = Masked.loss, [0]

    def loss(self: Masked, pred: Tensor, target: object) -> Tensor:
        step, calls[0] = calls[0] // 2, calls[0] + 1
        value = honest(self, pred, target)  # type: ignore[arg-type]
        return value * float("nan") if step in steps else value

    monkeypatch.setattr(Masked, "loss", loss)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {3, 7})
    fit.main([*TINY, f"runs_dir={tmp_path}"])
    checkpoint = torch.load(run_folder(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["eltlab"]["skipped"] == 2 and checkpoint["eltlab"]["step"] == 20
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    # The optimizer did not count the two skipped steps.
    assert {int(s["step"]) for s in checkpoint["optimizer_states"][0]["state"].values()} == {18}
    assert metrics(tmp_path)[-1]["skipped"] == "2.0"


def test_a_skipped_step_leaves_weights_and_moments_alone() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    parameter.grad = torch.ones(4)
    optimizer.step()
    before = parameter.detach().clone(), optimizer.state[parameter]["exp_avg"].clone()
    parameter.grad = torch.full((4,), float("nan"))
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(parameter, before[0])
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before[1])


def test_several_bad_steps_in_a_row_stop_the_run_with_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, set(range(6, 100)))
    with pytest.raises(Diverged, match="not finite for 9 steps in a row") as error:
        fit.main([*TINY, f"runs_dir={tmp_path}"])
    assert error.value.code == 1
    checkpoint = torch.load(run_folder(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_metrics_hold_every_exit_the_weight_and_the_updates(tmp_path: Path) -> None:
    fit.main([*TINY, f"runs_dir={tmp_path}"])
    lines = metrics(tmp_path)
    assert [line["images"] for line in lines] == ["80", "160", "240", "320"]
    for exit_ in range(1, 5):
        assert any(line[f"loss_exit_{exit_}"] for line in lines), exit_
        assert all(float(line[f"update_{exit_}"]) > 0 for line in lines)
    weights = [float(line["weight"]) for line in lines]
    assert weights == sorted(weights, reverse=True) and weights[0] < 1 and weights[-1] > 0
    assert all(1 <= float(line["student"]) <= 3 for line in lines)
    assert all(float(line["grad_norm"]) > 0 for line in lines)
    assert list((run_folder(tmp_path) / "tensorboard").glob("events.*"))


def test_the_average_is_of_the_backbone_and_warms_up() -> None:
    live = torch.nn.Linear(2, 2)
    average = ema_copy(live)
    start = average.weight.clone()
    with torch.no_grad():
        live.weight.add_(1.0)
    ema_update(average, live, 0.75)
    torch.testing.assert_close(average.weight, start + 0.25)
    assert not average.weight.requires_grad and not average.training
    assert ema_decay(0.999, 0) == 0.1 and ema_decay(0.999, 10**6) == 0.999


def test_the_module_averages_after_every_step(tmp_path: Path) -> None:
    fit.main([*TINY, f"runs_dir={tmp_path}", "budget.images=16", "ema.decay=0.999"])
    state = torch.load(run_folder(tmp_path) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    start = LoopedModule(compose(TINY)).backbone.state_dict()
    for key, first in start.items():
        expected = first + 0.9 * (state[f"backbone.{key}"] - first)  # the first decay is 1/10
        torch.testing.assert_close(state[f"ema.{key}"], expected, rtol=1e-5, atol=1e-7)


def test_learning_rate_warms_up_then_holds_or_falls() -> None:
    warm = ["optim.lr=1", "optim.warmup_images=160", "batch_size=16", "budget.images=1600"]
    constant, cosine = compose(warm), compose([*warm, "optim.schedule=cosine"])
    assert learning_rate(constant, 0) == pytest.approx(0.1)
    assert learning_rate(constant, 4) == pytest.approx(0.5)
    assert learning_rate(constant, 9) == learning_rate(constant, 99) == 1
    assert learning_rate(cosine, 9) == pytest.approx(1)
    assert learning_rate(cosine, 54) == pytest.approx(0.5)
    assert learning_rate(cosine, 99) == pytest.approx(0, abs=1e-9)


def test_labels_are_dropped_at_their_rate_by_a_function_of_the_step() -> None:
    module = LoopedModule(compose([*TINY, "objective.label_dropout=0.25"]))
    labels = torch.arange(40_000) % 10

    def dropped() -> Tensor:
        noise = BatchNoise(torch.Generator().manual_seed(1), len(labels))
        return module.drop_labels(labels, noise) == 10

    assert dropped().float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropped(), dropped())


def test_weight_decay_spares_gains_and_biases() -> None:
    module = LoopedModule(compose(TINY))
    decayed, spared = module.configure_optimizers().param_groups
    assert decayed["weight_decay"] > 0 == spared["weight_decay"]
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in spared["params"])
    count = len(decayed["params"]) + len(spared["params"])
    assert count == len(list(module.backbone.parameters()))


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_compiled_blocks_train_to_the_same_losses(tmp_path: Path) -> None:
    asked = [*TINY, "objective=diffusion", "budget.images=80"]
    fit.main([*asked, f"runs_dir={tmp_path / 'plain'}"])
    fit.main([*asked, f"runs_dir={tmp_path / 'compiled'}", "trainer.compile=true"])
    plain, compiled = metrics(tmp_path / "plain"), metrics(tmp_path / "compiled")
    assert float(plain[-1]["loss"]) == pytest.approx(float(compiled[-1]["loss"]), rel=1e-4)
