"""Supervisions: ilsd, final, deep and random_depth."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.supervisions import objectives, one_step, random_depth
from support.tiny_run import tiny

from eltlab.config.schema import DeepConfig, FinalConfig, IlsdConfig, RandomDepthConfig, WeightConfig
from eltlab.training.supervision import Deep, Final, Ilsd, build_supervision, ramp


def test_a_supervision_that_derives_from_ours_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "sub.py").write_text(
        "from dataclasses import dataclass\n"
        "from eltlab.config import IlsdConfig\n"
        "@dataclass\n"
        "class Sub(IlsdConfig):\n"
        "    def build(self, loops, seed, steps):\n"
        "        return 'its own'\n"
    )
    config = tiny(f"supervision={tmp_path}/sub.py")
    assert build_supervision(config.supervision, 4, 0, 10) == "its own"


LOOPS, STEPS = 4, 11


def ilsd(seed: int = 0, loops: int = LOOPS, steps: int = STEPS, **settings) -> Ilsd:
    return Ilsd(loops, IlsdConfig(name="ilsd", **settings), seed, steps)


# --- the student ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "loops"), [(1, 4), (2, 4), (1, 2), (3, 8)])
def test_student_is_uniform_and_strictly_below_the_teacher(low, loops):
    supervision = ilsd(loops=loops, min_loops=low)
    counts = Counter(supervision.student(step) for step in range(2000))
    assert set(counts) == set(range(low, loops))
    expected = 2000 / (loops - low)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_student_is_a_function_of_seed_and_step_only():
    supervision = ilsd(seed=3)
    forwards = [supervision.student(step) for step in range(100)]
    torch.manual_seed(9)
    backwards = [ilsd(seed=3).student(step) for step in reversed(range(100))]
    assert forwards == backwards[::-1]
    assert forwards != [ilsd(seed=4).student(step) for step in range(100)]


def test_exits_are_the_student_and_the_teacher():
    supervision = ilsd()
    for step in range(20):
        assert supervision.exits(step) == (supervision.student(step), LOOPS)


# --- λ --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 11, 1000])
def test_lambda_falls_linearly_from_one_to_zero(steps):
    """λ = 1 − s/(S − 1) (arXiv 2604.09168)."""
    got = [ramp(WeightConfig(), step, steps) for step in range(steps)]
    assert got[0] == 1 and got[-1] == 0
    assert got == pytest.approx([1 - step / (steps - 1) for step in range(steps)])


def test_lambda_of_cosine_and_constant_shapes():
    cosine = [ramp(WeightConfig("cosine"), step, 11) for step in range(11)]
    assert cosine[0] == 1 and cosine[-1] == pytest.approx(0) and cosine[5] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(cosine))
    assert cosine[1] > 0.97  # slow at first, unlike the line
    assert {ramp(WeightConfig("constant", start=0.3), step, 11) for step in range(11)} == {0.3}
    assert ramp(WeightConfig("linear", 0.8, 0.2), 10, 11) == pytest.approx(0.2)


def test_a_run_of_one_step_has_a_lambda():
    assert ramp(WeightConfig(), 0, 1) == 1


@objectives
@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
@pytest.mark.parametrize("distill", [1.0, 2.5])
def test_loss_splits_into_its_three_terms(objective, step, distill):
    """GT(teacher) + λ·GT(student) + (1 − λ)·distill·Dist."""
    _, goal, preds, target = one_step(objective)
    supervision = ilsd(distill=distill)
    student, fraction = supervision.student(step), 1 - step / (STEPS - 1)
    teacher_truth = goal.losses(preds[LOOPS], target).mean()
    student_truth = goal.losses(preds[student], target).mean()
    distilled = goal.distill(preds[student], preds[LOOPS], target)
    expected = teacher_truth + fraction * student_truth + (1 - fraction) * distill * distilled
    losses = supervision.losses(goal, preds, target, step)
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    assert losses.log["loss"] is losses.total
    assert losses.log[f"loss_exit_{LOOPS}"] == teacher_truth
    assert losses.log[f"loss_exit_{student}"] == student_truth
    assert losses.log["loss_distill"] == distilled
    assert losses.log["weight"] == pytest.approx(fraction) and losses.log["student"] == student


@objectives
@pytest.mark.parametrize("step", range(STEPS))
def test_teacher_has_its_ground_truth_at_every_step(objective, step):
    """At any λ: with the student detached, the gradient of the teacher is that of its ground truth."""
    _, goal, preds, target = one_step(objective)
    teacher = preds[LOOPS].detach().requires_grad_()
    student = {n: pred.detach() for n, pred in preds.items() if n != LOOPS}
    supervision = ilsd()
    supervision.losses(goal, {**student, LOOPS: teacher}, target, step).total.backward()
    alone = preds[LOOPS].detach().requires_grad_()
    goal.losses(alone, target).mean().backward()
    assert alone.grad.any()
    # Exactly equal, so distillation adds nothing to it.
    assert torch.equal(teacher.grad, alone.grad)


@objectives
def test_the_student_term_of_lambda_one_is_ground_truth_alone(objective):
    _, goal, preds, target = one_step(objective)
    supervision = ilsd()
    total = supervision.losses(goal, preds, target, 0).total
    student = supervision.student(0)
    assert torch.equal(
        total, goal.losses(preds[4], target).mean() + goal.losses(preds[student], target).mean()
    )


@objectives
def test_final_trains_the_last_exit_only(objective):
    _, goal, preds, target = one_step(objective)
    supervision = build_supervision(FinalConfig(name="final"), LOOPS, 0, STEPS)
    assert isinstance(supervision, Final)
    assert {supervision.exits(step) for step in range(20)} == {(LOOPS,)}
    leaves = {n: pred.detach().requires_grad_() for n, pred in preds.items()}
    losses = supervision.losses(goal, leaves, target, 5)
    assert torch.equal(losses.total, goal.losses(leaves[LOOPS], target).mean())
    losses.total.backward()
    assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [LOOPS]


def test_more_than_one_loop_keeps_ilsd():
    config = tiny("supervision=ilsd", "supervision.min_loops=2")
    supervision = build_supervision(config.supervision, config.loops, config.seed, config.steps)
    assert isinstance(supervision, Ilsd)
    assert (supervision.min_loops, supervision.loops, supervision.steps) == (2, 4, 8)


@objectives
@pytest.mark.parametrize("inner", [1.0, 0.25, [0.5, 0.0, 2.0]])
def test_deep_is_the_weighted_ground_truth_of_every_exit(objective, inner):
    _, goal, preds, target = one_step(objective)
    config = DeepConfig(name="deep", inner=inner)
    supervision = build_supervision(config, LOOPS, 0, STEPS)
    assert isinstance(supervision, Deep) and supervision.exits(3) == (1, 2, 3, 4)
    losses = supervision.losses(goal, preds, target, 3)
    weights = [*(inner if isinstance(inner, list) else [inner] * 3), 1]
    truths = [goal.losses(preds[n], target).mean() for n in (1, 2, 3, 4)]
    expected = sum(weight * truth for weight, truth in zip(weights, truths, strict=True))
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    assert [losses.log[f"loss_exit_{n}"] for n in (1, 2, 3, 4)] == truths


@pytest.mark.parametrize("settings", [{}, {"min_loops": 3}, {"max_loops": 5}, {"min_loops": 8}])
def test_uniform_depths_cover_their_range_evenly(settings):
    supervision = random_depth(**settings)
    low, high = settings.get("min_loops", 1), settings.get("max_loops", 8)
    counts = Counter(supervision.exits(step)[0] for step in range(3000))
    assert set(counts) == set(range(low, high + 1))
    expected = 3000 / (high - low + 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


def test_depth_is_a_function_of_seed_and_step_only():
    forwards = [random_depth(seed=3).exits(step)[0] for step in range(100)]
    torch.manual_seed(9)
    supervision = random_depth(seed=3)
    assert forwards == [supervision.exits(step)[0] for step in reversed(range(100))][::-1]
    assert forwards != [random_depth(seed=4).exits(step)[0] for step in range(100)]


@objectives
def test_random_depth_trains_the_last_exit_of_its_pass_only(objective):
    _, goal, preds, target = one_step(objective)
    config = RandomDepthConfig(name="random_depth")
    supervision = build_supervision(config, LOOPS, 0, STEPS)
    assert {supervision.exits(step) for step in range(40)} == {(1,), (2,), (3,), (4,)}
    for step in range(6):
        leaves = {n: pred.detach().requires_grad_() for n, pred in preds.items()}
        losses = supervision.losses(goal, leaves, target, step)
        [depth] = supervision.exits(step)
        assert torch.equal(losses.total, goal.losses(leaves[depth], target).mean())
        losses.total.backward()
        assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [depth]
        assert losses.log["depth"] == depth
