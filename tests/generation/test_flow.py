"""Rectified flow: its line, its times, its losses and the Euler and Heun samplers."""

import math
from itertools import pairwise

import pytest
import torch
from support.generators import generator
from support.tiny_run import tiny

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import FlowSamplerConfig
from eltlab.generation.flow import Flow
from eltlab.runs.row_files import read_rows
from eltlab.training import fit as training_fit

both_samplers = pytest.mark.parametrize("name", ["euler", "heun"])


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 2, 4, 4, generator=generator(5)) * 2 - 1


# --- the line and its times -----------------------------------------------------------------------


def test_corruption_lies_on_the_line_and_the_target_is_its_slope():
    x = images(64)
    (z, t), velocity = Flow().corrupt(x, BatchNoise(generator(), len(x)))
    t = t.view(-1, 1, 1, 1)
    noise = velocity + x
    torch.testing.assert_close(z, x + t * velocity)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1
    (again, _), same = Flow().corrupt(x, BatchNoise(generator(), len(x)))
    (other, _), _ = Flow().corrupt(x, BatchNoise(generator(1), len(x)))
    assert torch.equal(z, again) and torch.equal(velocity, same) and not torch.equal(z, other)


def test_the_ends_are_the_data_and_pure_noise():
    x = images(2)
    (z, t), velocity = Flow().corrupt(x, BatchNoise(generator(), len(x)), torch.tensor([0.0, 1.0]))
    assert t.tolist() == [0, 1]
    assert torch.equal(z[0], x[0])
    torch.testing.assert_close(z[1], (velocity + x)[1])


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.6)])
def test_times_are_logit_normal(mean, std):
    count = 100_000
    (_, t), _ = Flow(mean, std).corrupt(torch.zeros(count, 1, 1, 1), BatchNoise(generator(), count))
    logit = torch.logit(t.double())
    assert abs(logit.mean() - mean) < 5 * std / math.sqrt(count)
    assert abs(logit.std() - std) < 5 * std / math.sqrt(2 * count)
    third = ((logit - mean) / std).pow(3).mean()  # of a normal distribution: 0, with variance 15
    assert abs(third) < 5 * math.sqrt(15 / count)


def test_a_level_is_the_time_at_its_quantile():
    objective, u = Flow(-0.5, 1.3, shift=3.0), torch.linspace(0.01, 0.99, 9)
    (_, t), _ = objective.corrupt(torch.zeros(9, 1, 1, 1), BatchNoise(generator(), 9), u)
    assert torch.equal(t, objective.level(u)) and (t.diff() > 0).all()
    (_, drawn), _ = objective.corrupt(torch.zeros(50_000, 1, 1, 1), BatchNoise(generator(), 50_000))
    for share, time in zip(u, t, strict=True):
        assert abs((drawn < time).float().mean() - share) < 5 * 0.5 / math.sqrt(50_000)


def test_shift_multiplies_the_ratio_of_noise_to_signal():
    """s·t/(1 + (s − 1)·t): noise over signal, t/(1 − t), is multiplied by s."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    shifted = Flow(shift=2.5).shift_time(t)
    torch.testing.assert_close(shifted / (1 - shifted), 2.5 * t / (1 - t))
    torch.testing.assert_close(Flow(shift=1.0).shift_time(t), t)


def test_losses_are_their_formulas_and_the_teacher_gets_no_gradient():
    objective, x = Flow(), images(3)
    _, velocity = objective.corrupt(x, BatchNoise(generator(), len(x)))
    student = torch.randn(x.shape, generator=generator(1)).requires_grad_()
    teacher = torch.randn(x.shape, generator=generator(2)).requires_grad_()
    truth = ((student - velocity) ** 2).mean()
    torch.testing.assert_close(objective.losses(student, velocity).mean(), truth)
    distilled = objective.distill(student, teacher, velocity)
    torch.testing.assert_close(distilled, ((student - teacher) ** 2).mean())
    distilled.backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / x.numel())


# --- samplers -------------------------------------------------------------------------------------


def drawn(velocity, shape, name, steps, samples=4, shift=1.0):
    """The samples, and the (step, z, t) that the network saw."""
    seen = []

    def predict(step, inputs):
        z, t = inputs
        seen.append((step, z, t))
        return velocity(z, t.view(-1, 1, 1, 1))

    noise = SampleNoise(0, list(range(samples)))
    sampler = FlowSamplerConfig(name=name, steps=steps)
    return Flow(shift=shift).sample(predict, noise, shape, sampler), seen


@both_samplers
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_true_velocity_reproduces_the_data_at_any_step_count(name, steps, shift):
    x = images(4)
    done, seen = drawn(lambda z, t: (z - x) / t, x.shape[1:], name, steps, shift=shift)
    torch.testing.assert_close(done, x, atol=2e-5, rtol=0)
    assert [step for step, _, _ in seen] == sorted(step for step, _, _ in seen)
    start = seen[0][1]
    for _, z, t in seen:  # every state lies on the line from its own noise
        torch.testing.assert_close(z, x + t.view(-1, 1, 1, 1) * (start - x), atol=2e-5, rtol=0)


def test_times_run_from_one_to_zero_under_the_shift():
    _, seen = drawn(lambda z, t: z, (1, 2, 2), "euler", 4, shift=3.0)
    times = torch.stack([t[0] for _, _, t in seen])
    torch.testing.assert_close(times, Flow(shift=3.0).shift_time(torch.tensor([1, 0.75, 0.5, 0.25])))


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_solver(name, order):
    """Against the exact flow of normal data N(0, 0.5²): z_0 = 0.5·z_1. Heun's last step is Euler's;
    the error of a single step falls with the square of the step count too."""
    variance = 0.5**2

    def velocity(z, t):
        """E[ε − x | z] = (t − (1 − t)·σ²)/(t² + (1 − t)²·σ²)·z"""
        return z * (t - (1 - t) * variance) / (t**2 + (1 - t) ** 2 * variance)

    errors = []
    for steps in (16, 32, 64):
        done, seen = drawn(velocity, (1, 4, 4), name, steps)
        errors.append((done - 0.5 * seen[0][1]).abs().max().item())
    for before, after in pairwise(errors):
        assert math.log2(before / after) == pytest.approx(order, abs=0.35)


@pytest.mark.integration
@pytest.mark.parametrize("supervision", ["final", "ilsd", "deep", "random_depth"])
def test_a_flow_is_trained_and_measured_under_every_supervision(tmp_path, supervision):
    config = tiny(
        *("objective=flow", f"supervision={supervision}", "sampler.name=heun"),
        *("trainer.grids=1", f"runs_dir={tmp_path}"),
    )
    training_fit.fit(config)
    [path] = tmp_path.rglob("rows.jsonl")
    rows = [row for row in read_rows(path) if row["kind"] == "eval"]
    assert [row["loops"] for row in rows] == [1, 2, 3, 4]
    assert {row["nfe"] for row in rows} == {7}
    assert all(math.isfinite(row["fd_classifier"]) for row in rows)
