"""Supervisions (ilsd, final, deep, random_depth) and the training step around them."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from conftest import perturbed, tiny

from eltlab.common.seeds import BatchNoise
from eltlab.config.depth_distribution import depth_distribution
from eltlab.config.schema import (
    DeepConfig,
    FinalConfig,
    IlsdConfig,
    RandomDepthConfig,
    WeightConfig,
)
from eltlab.generation.objective import build_objective
from eltlab.model.backbone import build_backbone
from eltlab.training.looped_module import LoopedModule
from eltlab.training.supervision import Deep, Final, Ilsd, RandomDepth, build_supervision, ramp

LOOPS, STEPS = 4, 11
objectives = pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])


def ilsd(seed: int = 0, loops: int = LOOPS, steps: int = STEPS, **settings) -> Ilsd:
    return Ilsd(loops, IlsdConfig(name="ilsd", **settings), seed, steps)


def one_step(name: str, exits=(1, 2, 3, 4)):
    """A network, its objective, the predictions of one pass and their target."""
    config = tiny(f"objective={name}")
    net, objective = perturbed(build_backbone(config)), build_objective(config)
    generator = torch.Generator().manual_seed(1)
    if name == "masked":
        x = torch.randint(16, (8, 16), generator=generator)
    else:
        x = torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1
    inputs, target = objective.corrupt(x, BatchNoise(generator, len(x)))
    preds = net(*inputs, labels_B=torch.arange(8), exits=exits).exits
    return net, objective, preds, target


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


# --- the loss -------------------------------------------------------------------------------------


@objectives
@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
@pytest.mark.parametrize("distill", [1.0, 2.5])
def test_loss_splits_into_its_three_terms(objective, step, distill):
    """GT(teacher) + λ·GT(student) + (1 − λ)·distill·Dist."""
    _, goal, preds, target = one_step(objective)
    supervision = ilsd(distill=distill)
    student, fraction = supervision.student(step), 1 - step / (STEPS - 1)
    teacher_truth = goal.loss(preds[LOOPS], target)
    student_truth = goal.loss(preds[student], target)
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
    goal.loss(alone, target).backward()
    assert alone.grad.any()
    # Exactly equal, so distillation adds nothing to it.
    assert torch.equal(teacher.grad, alone.grad)


@objectives
def test_distillation_has_no_gradient_to_the_teacher(objective):
    _, goal, preds, target = one_step(objective)
    student, teacher = (preds[n].detach().requires_grad_() for n in (2, 4))
    goal.distill(student, teacher, target).backward()
    assert teacher.grad is None or not teacher.grad.any()
    assert student.grad.abs().sum() > 0


@objectives
def test_distillation_treats_the_teacher_as_a_constant_in_the_network(objective):
    """The weights are shared, so the teacher's path must be cut, not only its prediction's leaf."""
    net, goal, preds, target = one_step(objective)

    def gradients(teacher):
        loss = goal.distill(preds[2], teacher, target)
        found = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in found])

    constant = gradients(preds[4].detach().clone())
    assert constant.any() and torch.equal(gradients(preds[4]), constant)


@objectives
def test_the_student_term_of_lambda_one_is_ground_truth_alone(objective):
    _, goal, preds, target = one_step(objective)
    supervision = ilsd()
    total = supervision.losses(goal, preds, target, 0).total
    student = supervision.student(0)
    assert torch.equal(total, goal.loss(preds[4], target) + goal.loss(preds[student], target))


# --- the vanilla loop -----------------------------------------------------------------------------


@objectives
def test_final_trains_the_last_exit_only(objective):
    _, goal, preds, target = one_step(objective)
    supervision = build_supervision(FinalConfig(name="final"), LOOPS, 0, STEPS)
    assert isinstance(supervision, Final)
    assert {supervision.exits(step) for step in range(20)} == {(LOOPS,)}
    leaves = {n: pred.detach().requires_grad_() for n, pred in preds.items()}
    losses = supervision.losses(goal, leaves, target, 5)
    assert torch.equal(losses.total, goal.loss(leaves[LOOPS], target))
    losses.total.backward()
    assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [LOOPS]


def test_one_loop_makes_every_supervision_final():
    config = tiny("loops=1", "supervision=ilsd")
    assert config.supervision == FinalConfig(name="final")
    assert config.name.endswith("-final")
    final = tiny("loops=1", "supervision=final")
    assert config == final


def test_more_than_one_loop_keeps_ilsd():
    config = tiny("supervision=ilsd", "supervision.min_loops=2")
    supervision = build_supervision(config.supervision, config.loops, config.seed, config.steps)
    assert isinstance(supervision, Ilsd)
    assert (supervision.min_loops, supervision.loops, supervision.steps) == (2, 4, 8)


# --- deep -----------------------------------------------------------------------------------------


@objectives
@pytest.mark.parametrize("inner", [1.0, 0.25, [0.5, 0.0, 2.0]])
def test_deep_is_the_weighted_ground_truth_of_every_exit(objective, inner):
    _, goal, preds, target = one_step(objective)
    config = DeepConfig(name="deep", inner=inner)
    supervision = build_supervision(config, LOOPS, 0, STEPS)
    assert isinstance(supervision, Deep) and supervision.exits(3) == (1, 2, 3, 4)
    losses = supervision.losses(goal, preds, target, 3)
    weights = [*(inner if isinstance(inner, list) else [inner] * 3), 1]
    truths = [goal.loss(preds[n], target) for n in (1, 2, 3, 4)]
    expected = sum(weight * truth for weight, truth in zip(weights, truths, strict=True))
    torch.testing.assert_close(losses.total, expected, rtol=1e-6, atol=0)
    assert [losses.log[f"loss_exit_{n}"] for n in (1, 2, 3, 4)] == truths


# --- random depth ---------------------------------------------------------------------------------


def random_depth(seed: int = 0, loops: int = 8, **settings) -> RandomDepth:
    return RandomDepth(loops, RandomDepthConfig(name="random_depth", **settings), seed)


@pytest.mark.parametrize("settings", [{}, {"min_loops": 3}, {"max_loops": 5}, {"min_loops": 8}])
def test_uniform_depths_cover_their_range_evenly(settings):
    supervision = random_depth(**settings)
    low, high = settings.get("min_loops", 1), settings.get("max_loops", 8)
    counts = Counter(supervision.exits(step)[0] for step in range(3000))
    assert set(counts) == set(range(low, high + 1))
    expected = 3000 / (high - low + 1)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@pytest.mark.parametrize("mean", [1.3, 4.0, 6.5])
def test_poisson_depths_have_the_requested_mean_and_shape(mean):
    law = depth_distribution("poisson", 1, 8, mean)
    assert list(law) == list(range(1, 9)) and sum(law.values()) == pytest.approx(1)
    assert sum(n * fraction for n, fraction in law.items()) == pytest.approx(mean, abs=1e-9)
    # Poisson: p(ℓ)/p(ℓ − 1) = μ/(ℓ − 1), with one μ for every ℓ, although the distribution is truncated.
    rates = [law[n] / law[n - 1] * (n - 1) for n in range(2, 9)]
    assert rates == pytest.approx([rates[0]] * 7)
    drawn = [random_depth(law="poisson", mean=mean).exits(step)[0] for step in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(mean, abs=0.15)


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
        assert torch.equal(losses.total, goal.loss(leaves[depth], target))
        losses.total.backward()
        assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [depth]
        assert losses.log["depth"] == depth


# --- declared cost --------------------------------------------------------------------------------

SPENT = {
    "final": (4, 1),
    "ilsd": (4, 2),
    "deep": (4, 4),
    "random_depth": (2.5, 1),
    "random_depth supervision.law=poisson supervision.mean=3": (3, 1),
    "random_depth supervision.min_loops=3": (3.5, 1),
}


@pytest.mark.parametrize("choice", SPENT)
def test_the_declared_cost_of_a_supervision_is_that_of_its_passes(choice):
    """The mean loops of a pass and the exits read, over many steps."""
    config = tiny(*f"supervision={choice}".split())
    depths, exits_read, distilled = config.supervision.spent(4)
    assert distilled == (choice == "ilsd")
    assert sum(depths.values()) == pytest.approx(1)
    mean = sum(loops * fraction for loops, fraction in depths.items())
    assert (mean, exits_read) == pytest.approx(SPENT[choice])
    supervision = build_supervision(config.supervision, 4, 0, 4000)
    exits = [supervision.exits(step) for step in range(4000)]
    assert sum(map(max, exits)) / 4000 == pytest.approx(SPENT[choice][0], abs=0.1)
    assert {len(set(asked)) for asked in exits} == {SPENT[choice][1]}


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
