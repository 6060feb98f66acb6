"""Training steps: averaging, skipped steps, schedules, metrics and checkpoints."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.diagnostic_files import lines
from support.errors import fails
from support.supervisions import objectives
from support.tiny_run import TINY, find_run, tiny
from torch import Tensor

from eltlab import fit
from eltlab.common.errors import Diverged
from eltlab.common.seeds import BatchNoise
from eltlab.generation.masked import Masked
from eltlab.training.ema import exponent
from eltlab.training.looped_module import LoopedModule, learning_rate

# Without validation, which computes losses too: `spoil` would count them.
TRAINING_ONLY = ["trainer.grids=0", "trainer.validations=0", "evaluate=false"]
TWENTY_STEPS = [
    *TINY,
    *TRAINING_ONLY,
    "budget.images=160",
    "trainer.log_every=5",
    "trainer.checkpoint_seconds=0",
]

# --- the training step ----------------------------------------------------------------------------


def batch(objective: str, count: int = 8):
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(count) % 10
    if objective == "masked":
        return torch.randint(16, (count, 16), generator=generator), labels
    return torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1, labels


def recorded(module: LoopedModule) -> list[dict]:
    calls: list[dict] = []
    module.backbone.register_forward_pre_hook(lambda _, given, named: calls.append(named), with_kwargs=True)
    return calls


@objectives
def test_a_training_step_is_one_pass_for_teacher_and_student(objective):
    module = LoopedModule(tiny(f"objective={objective}", "model.dropout=0.1"))
    calls = recorded(module)
    for step in range(5):
        module.step = step
        module.training_step(batch(objective), 0)
        assert len(calls) == step + 1
        assert calls[-1]["exits"] == (module.supervision.student(step), 4)


@objectives
@pytest.mark.parametrize("fraction", [0.0, 0.3])
def test_label_dropout_gives_the_network_null_labels(objective, fraction):
    module = LoopedModule(tiny(f"objective={objective}", f"objective.label_dropout={fraction}"))
    calls = recorded(module)
    x, labels = batch(objective, 2000)
    module.training_step((x, labels), 0)
    given = calls[0]["labels_B"]
    dropped = given == 10
    assert abs(dropped.float().mean() - fraction) <= 5 * (fraction * (1 - fraction) / 2000) ** 0.5
    assert torch.equal(given[~dropped], labels[~dropped])


@objectives
def test_a_training_step_is_a_function_of_seed_and_step(objective):
    """With dropout too, whatever was drawn from the global generator before."""
    module = LoopedModule(tiny(f"objective={objective}", "model.dropout=0.2"))

    def loss(step: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        module.step = step
        return module.training_step(batch(objective), 0).detach()

    assert torch.equal(loss(2, 5), loss(2, 6))
    assert not torch.equal(loss(2, 5), loss(3, 5))


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Makes the ground-truth loss of these steps NaN. ILSD calls it twice per step."""
    honest, calls = Masked.losses, [0]

    def losses(self: Masked, pred: Tensor, target: object) -> Tensor:
        step, calls[0] = calls[0] // 2, calls[0] + 1
        value = honest(self, pred, target)  # type: ignore[arg-type]
        return value * float("nan") if step in steps else value

    monkeypatch.setattr(Masked, "losses", losses)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, {3, 7})
    fit.main([*TWENTY_STEPS, f"runs_dir={tmp_path}"])
    checkpoint = torch.load(find_run(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["eltlab"]["skipped"] == 2 and checkpoint["eltlab"]["step"] == 20
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    # The optimizer did not count the two skipped steps.
    assert {int(s["step"]) for s in checkpoint["optimizer_states"][0]["state"].values()} == {18}
    assert lines(find_run(tmp_path) / "metrics.csv")[-1]["skipped"] == 2


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


def test_a_good_step_ends_a_row_of_bad_ones() -> None:
    module = LoopedModule(tiny())
    optimizer = module.configure_optimizers()
    for norm in (math.nan, math.nan, 1.0, math.inf, 1.0):
        for parameter in module.backbone.parameters():
            parameter.grad = torch.full_like(parameter, norm)
        module.configure_gradient_clipping(optimizer)
    assert (module.skipped, module.skipped_in_row, module.longest_bad) == (3, 0, 2)


def test_several_bad_steps_in_a_row_stop_the_run_with_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoil(monkeypatch, set(range(6, 100)))
    with pytest.raises(Diverged, match="not finite for 9 steps in a row") as error:
        fit.main([*TWENTY_STEPS, f"runs_dir={tmp_path}"])
    assert error.value.code == 1
    checkpoint = torch.load(find_run(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_the_module_averages_after_every_step(tmp_path: Path) -> None:
    """Each of ema.lengths is the weighted sum of the weights after all eight steps."""
    states: list[dict[str, Tensor]] = []
    lengths = [0.28, 0.02]

    class Recorder(LoopedModule):
        def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().optimizer_step(*args, **kwargs)
            states.append({k: v.clone() for k, v in self.backbone.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eltlab.training.train.LoopedModule", Recorder)
        fit.main([*TINY, *TRAINING_ONLY, f"runs_dir={tmp_path}", f"ema.lengths={lengths}"])
    state = torch.load(find_run(tmp_path) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert len(states) == 8
    for number, length in enumerate(sorted(lengths)):
        shares = [0.0] * 8
        for t in range(1, 9):
            decay = (1 - 1 / t) ** (exponent(length) + 1)
            shares = [share * decay for share in shares]
            shares[t - 1] = 1 - decay
        for key in states[0]:
            expected = sum(share * each[key] for share, each in zip(shares, states, strict=True))
            torch.testing.assert_close(state[f"ema.{number}.{key}"], expected, rtol=1e-4, atol=1e-6)


def test_the_selected_average_is_the_one_that_training_samples_and_validates() -> None:
    module = LoopedModule(tiny("ema.lengths=[0.2,0.05]"))
    assert module.average is module.ema[1]  # the first that was given; they are stored by length
    assert LoopedModule(tiny("ema.length=0.1")).average is not module.ema[0]
    later = LoopedModule(tiny("ema.length=0.1"))
    assert later.average is later.ema[1]


def test_learning_rate_warms_up_then_holds_or_falls() -> None:
    warm = ["optim.lr=1", "optim.warmup=0.1", "batch_size=16", "budget.images=1600"]
    constant, cosine = tiny(*warm), tiny(*warm, "optim.schedule=cosine")
    assert learning_rate(constant, 0) == pytest.approx(0.1)
    assert learning_rate(constant, 4) == pytest.approx(0.5)
    assert learning_rate(constant, 9) == learning_rate(constant, 99) == 1
    assert learning_rate(cosine, 9) == pytest.approx(1)
    assert learning_rate(cosine, 54) == pytest.approx(0.5)
    assert learning_rate(cosine, 99) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_longer_run_has_the_same_learning_rates_stretched(schedule: str) -> None:
    """Budgets in FLOPs give arms different numbers of steps, which must not change their schedule."""
    short, long = (
        tiny("optim.warmup=0.3", f"optim.schedule={schedule}", f"budget.images={images}")
        for images in (80, 320)
    )
    for step in range(10):  # steps of eight images; the shares of the run that both reach
        assert learning_rate(long, 4 * step + 3) == pytest.approx(learning_rate(short, step))
    assert learning_rate(short, 0) < short.optim.lr


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate(tiny("optim.warmup=0", "optim.lr=1"), 0) == 1


CARELESS = """
from dataclasses import dataclass

from eltlab.config.schema import Spent, SupervisionConfig
from eltlab.training.supervision import Deep


@dataclass
class Careless(SupervisionConfig):
    inner: float = 1.0
    told: int = 1
    depth: int = 0

    def spent(self, loops):
        return Spent({self.depth or loops: 1.0}, self.told)

    def build(self, loops, seed, steps):
        return Deep(loops, self)
"""


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ([], "says 4 loops and 1 exits read"),
        (["supervision.told=4", "supervision.depth=2"], "says 2 loops and 4 exits read"),
    ],
)
def test_a_supervision_that_reads_more_than_it_says_is_refused_at_its_first_step(
    tmp_path: Path, keys: list[str], told: str
) -> None:
    file = tmp_path / "careless.py"
    file.write_text(CARELESS)
    run = [*TINY, *TRAINING_ONLY, f"runs_dir={tmp_path}", f"supervision={file}"]
    message = fails(fit.main, [*run, *keys])
    assert "a step runs 4 loops and reads 4 exits" in message and told in message
    fit.main([*run, "supervision.told=4"])  # what it reads


def test_labels_are_dropped_at_their_rate_by_a_function_of_the_step() -> None:
    module = LoopedModule(tiny("objective.label_dropout=0.25"))
    labels = torch.arange(40_000) % 10

    def dropped() -> Tensor:
        noise = BatchNoise(torch.Generator().manual_seed(1), len(labels))
        return module.drop_labels(labels, noise) == 10

    assert dropped().float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(dropped(), dropped())


def test_weight_decay_spares_gains_and_biases() -> None:
    module = LoopedModule(tiny())
    decayed, spared = module.configure_optimizers().param_groups
    assert decayed["weight_decay"] > 0 == spared["weight_decay"]
    assert all(p.dim() >= 2 for p in decayed["params"]) and all(p.dim() < 2 for p in spared["params"])
    count = len(decayed["params"]) + len(spared["params"])
    assert count == len(list(module.backbone.parameters()))


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_compiled_blocks_train_to_the_same_losses(tmp_path: Path) -> None:
    overrides = [*TINY, *TRAINING_ONLY, "objective=diffusion", "budget.images=40"]
    fit.main([*overrides, f"runs_dir={tmp_path / 'plain'}"])
    fit.main([*overrides, f"runs_dir={tmp_path / 'compiled'}", "trainer.compile=true"])
    plain, compiled = (lines(find_run(tmp_path / name) / "metrics.csv") for name in ("plain", "compiled"))
    assert plain[-1]["loss"] == pytest.approx(compiled[-1]["loss"], rel=1e-4)
