"""What every objective keeps: slices of a batch, and a teacher without gradients."""

import pytest
import torch
from support.supervisions import objectives, one_step
from support.tiny_run import tiny

from eltlab.common.seeds import WHOLE_BATCH, BatchNoise, BatchSlice, generator
from eltlab.generation.masked import Masked
from eltlab.generation.objective import build_objective


def test_settings_reach_the_objective():
    overrides = ("objective.time_mean=-0.4", "objective.time_std=0.8", "objective.shift=2")
    objective = build_objective(tiny("objective=flow", *overrides))
    assert (objective.time_mean, objective.time_std, objective.shift) == (-0.4, 0.8, 2.0)


@pytest.mark.parametrize("objective", ["masked", "diffusion", "flow"])
def test_the_mean_over_slices_is_the_loss_of_the_batch(objective):
    """For ground truth and distillation, although slices have unequal numbers of masked tokens."""
    objective = build_objective(tiny(f"objective={objective}"))
    g = generator("test")
    x = torch.randn(8, 1, 8, 8, generator=g)
    student, teacher = torch.randn(2, 8, 1, 8, 8, generator=g)
    if isinstance(objective, Masked):
        x = torch.randint(16, (8, 16), generator=g)
        student, teacher = torch.randn(2, 8, 16, 16, generator=g)

    def losses(batch_slice: BatchSlice) -> torch.Tensor:
        noise = BatchNoise(generator("step"), 8, batch_slice)
        rows = batch_slice.rows(8)
        _, target = objective.corrupt(x[rows], noise)
        truth = objective.losses(student[rows], target).mean()
        return torch.stack([truth, objective.distill(student[rows], teacher[rows], target)])

    parts = [losses(BatchSlice(rank, 2, n, 2)) for rank in (0, 1) for n in (0, 1)]
    torch.testing.assert_close(torch.stack(parts).mean(0), losses(WHOLE_BATCH))


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
