"""The diffusion objective, its samplers, guidance and shift."""

import math

import pytest
import torch
from support.generators import generator
from support.tiny_run import tiny

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import DiffusionSamplerConfig
from eltlab.generation.diffusion import Diffusion, alpha_sigma, ancestral_step, ddim_step
from eltlab.generation.objective import build_objective

PREDICTIONS = ("v", "epsilon", "x")
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)
both_samplers = pytest.mark.parametrize("ancestral", [True, False], ids=["ddpm", "ddim"])


def images(count: int = 4, seed: int = 5) -> torch.Tensor:
    return torch.rand(count, 2, 4, 4, generator=generator(seed)) * 2 - 1


def exact(prediction: str, x, z, alpha, sigma):
    """What a network that knows x would predict for z, by the definitions."""
    noise = (z - alpha * x) / sigma
    return {"x": x, "epsilon": noise, "v": alpha * noise - sigma * x}[prediction]


def level(time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """α and σ at the time that the network is given."""
    time = time.view(-1, 1, 1, 1)
    return torch.cos(math.pi / 2 * time), torch.sin(math.pi / 2 * time)


# --- schedule and weighting -----------------------------------------------------------------------


def test_terminal_signal_is_below_a_thousandth():
    """Sampling starts from pure noise, so training must reach it."""
    for objective in (Diffusion(), build_objective(tiny("objective=diffusion"))):
        alpha, sigma = alpha_sigma(objective.logsnr(torch.tensor(1.0)))
        assert alpha < 1e-3 and sigma > 0.999999


def test_logsnr_falls_between_its_bounds():
    zeta = Diffusion().logsnr(torch.linspace(0, 1, 1001))
    torch.testing.assert_close(zeta[[0, 500, 1000]], torch.tensor([15.0, 0.0, -15.0]))
    assert zeta.isfinite().all() and (zeta.diff() < 0).all() and zeta.abs().max() <= 15.0001


def test_logsnr_is_the_cosine_schedule():
    """ζ = −2·ln tan(π·t/2) up to the rescaling of t, which hardly moves the middle."""
    t = torch.linspace(0.1, 0.9, 9)
    cosine = -2 * torch.log(torch.tan(math.pi * t / 2))
    torch.testing.assert_close(Diffusion().logsnr(t), cosine, atol=0.01, rtol=0)


def test_variance_is_preserved():
    alpha, sigma = alpha_sigma(torch.linspace(-15, 15, 301, dtype=torch.float64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(301, dtype=torch.float64))
    logsnr = 2 * torch.log(alpha / sigma)
    torch.testing.assert_close(logsnr, torch.linspace(-15, 15, 301, dtype=torch.float64))


@pytest.mark.parametrize("bias", [0.0, -2.0, 1.5])
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_weight_is_minus_the_slope_of_logsnr_times_the_sigmoid(bias, shift):
    objective = Diffusion(bias=bias, shift=shift)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    h = 1e-3
    rise = objective.logsnr(t + h).double() - objective.logsnr(t - h).double()
    rate = torch.sigmoid(objective.logsnr(t).double() - bias) * math.exp(bias)
    # The central difference itself is wrong by (h/t)²/3 near the ends.
    torch.testing.assert_close(objective.weight(t).double(), -rise / (2 * h) * rate, rtol=6e-3, atol=0)


def test_weight_is_exact_and_finite_up_to_both_ends():
    """−dζ/dt alone is unbounded there: the rescaling of t keeps it finite."""
    objective = Diffusion()
    t = torch.tensor([0.0, 1e-6, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(objective.logsnr(t).sum(), t)
    expected = -slope * torch.sigmoid(objective.logsnr(t)).double()
    weight = objective.weight(t).double()
    assert weight.isfinite().all() and (weight > 0).all()
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=0)


def test_shift_moves_logsnr_and_the_noise_that_training_sees():
    plain, shifted = Diffusion(), Diffusion(shift=-3.0)
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(shifted.logsnr(t), plain.logsnr(t) - 3)
    x = torch.zeros(1000, 1, 1, 1)
    (z, _), target = plain.corrupt(x, BatchNoise(generator(), len(x)))
    (z_shifted, _), target_shifted = shifted.corrupt(x, BatchNoise(generator(), len(x)))
    torch.testing.assert_close(target_shifted.logsnr, target.logsnr - 3)
    assert z_shifted.square().mean() > z.square().mean()


# --- corruption and losses ------------------------------------------------------------------------


def test_corrupt_adds_standard_noise_at_the_level_it_reports():
    x = images(4000)
    (z, time), target = Diffusion(bias=0.7).corrupt(x, BatchNoise(generator(), len(x)))
    alpha, sigma = alpha_sigma(target.logsnr)
    noise = (z - alpha * x) / sigma
    # At σ = 5e-4 float32 leaves three digits of the noise, which is enough for its moments.
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs((noise * x).mean()) < 0.02
    assert torch.equal(target.x, x) and torch.equal(target.z, z)
    told_alpha, told_sigma = level(time)
    torch.testing.assert_close(told_alpha, alpha, atol=1e-5, rtol=0)
    torch.testing.assert_close(told_sigma, sigma, atol=1e-5, rtol=0)
    # One time per example, uniform on (0, 1).
    assert time.unique().numel() > 3900
    quarters = torch.histc(time, 4, 0, 1) / 4000
    assert (quarters - 0.25).abs().max() < 0.03
    torch.testing.assert_close(
        target.weight.flatten(), Diffusion(bias=0.7).weight(rescaled(time)), rtol=1e-2, atol=1e-3
    )


def rescaled(time: torch.Tensor) -> torch.Tensor:
    """t of the time input: the inverse of the rescaling that bounds ζ."""
    first = 2 / math.pi * math.atan(math.exp(-7.5))
    return ((time.double() - first) / (1 - 2 * first)).clamp(0, 1)


def test_corrupt_is_a_function_of_its_generator():
    x = images(3)
    (z, time), _ = Diffusion().corrupt(x, BatchNoise(generator(1), len(x)))
    (again, time_again), _ = Diffusion().corrupt(x, BatchNoise(generator(1), len(x)))
    (other, _), _ = Diffusion().corrupt(x, BatchNoise(generator(2), len(x)))
    assert torch.equal(z, again) and torch.equal(time, time_again)
    assert not torch.equal(z, other)


@every_prediction
@pytest.mark.parametrize("zeta", [-14.9, -6.0, 0.0, 6.0, 14.9])
def test_to_x_inverts_the_exact_prediction(prediction, zeta):
    x, noise = images(4), torch.randn(4, 2, 4, 4, generator=generator())
    logsnr = torch.tensor(zeta)
    alpha, sigma = alpha_sigma(logsnr)
    z = alpha * x + sigma * noise
    given = {"x": x, "epsilon": noise, "v": alpha * noise - sigma * x}[prediction]
    # Recovering x from ε divides the rounding error of z by α.
    tolerance = 1e-6 / float(alpha) if prediction == "epsilon" else 1e-6
    got = Diffusion(prediction).to_x(given, z, logsnr)
    torch.testing.assert_close(got, x, atol=tolerance, rtol=0)


@every_prediction
def test_loss_is_zero_for_the_perfect_prediction_and_positive_otherwise(prediction):
    objective, x = Diffusion(prediction), images(64)
    (z, _), target = objective.corrupt(x, BatchNoise(generator(), len(x)))
    alpha, sigma = alpha_sigma(target.logsnr)
    perfect = exact(prediction, x, z, alpha, sigma)
    assert objective.losses(perfect, target).mean() < 1e-6
    assert objective.distill(perfect, perfect, target) == 0
    assert objective.losses(perfect + 0.1, target).mean() > 1e-3
    assert objective.distill(perfect + 0.1, perfect, target) > 1e-3


@every_prediction
def test_losses_are_weighted_errors_of_x(prediction):
    """GT = w·‖x̂ − x‖² and Dist = w·‖x̂_student − x̂_teacher‖², whatever the network predicts."""
    objective, x = Diffusion(prediction, bias=0.5), images(8)
    (z, _), target = objective.corrupt(x, BatchNoise(generator(), len(x)))
    alpha, sigma = alpha_sigma(target.logsnr)
    teacher, student = torch.randn(2, 8, 2, 4, 4, generator=generator(3))

    def x_of(pred):
        return {"x": pred, "epsilon": (z - sigma * pred) / alpha, "v": alpha * z - sigma * pred}[prediction]

    truth = (target.weight * (x_of(student) - x) ** 2).mean()
    distilled = (target.weight * (x_of(student) - x_of(teacher)) ** 2).mean()
    torch.testing.assert_close(objective.losses(student, target).mean(), truth)
    torch.testing.assert_close(objective.distill(student, teacher, target), distilled)


# --- samplers -------------------------------------------------------------------------------------


def sampler(steps, ancestral, clip):
    return DiffusionSamplerConfig(name="ddpm" if ancestral else "ddim", steps=steps, clip=clip)


def drawn_with_a_perfect_denoiser(x, prediction, steps, ancestral, clip=False, seed=0):
    """The samples, and (z, time) that the network saw at each step."""
    seen = []

    def predict(step, inputs):
        z, time = inputs
        assert step == len(seen)
        seen.append((z, time))
        return exact(prediction, x, z, *level(time))

    noise = SampleNoise(seed, list(range(len(x))))
    done = Diffusion(prediction).sample(predict, noise, x.shape[1:], sampler(steps, ancestral, clip))
    return done, seen


@both_samplers
@every_prediction
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_a_perfect_denoiser_reproduces_the_data_at_any_step_count(prediction, ancestral, steps):
    x = images(4)
    done, seen = drawn_with_a_perfect_denoiser(x, prediction, steps, ancestral)
    assert len(seen) == steps
    torch.testing.assert_close(done, x, atol=2e-3, rtol=0)


@both_samplers
@pytest.mark.parametrize("steps", [2, 7, 50])
def test_respaced_sampling_keeps_the_marginals(ancestral, steps):
    """At each time the samples follow q(z_t | x). Posteriors of single steps, used for longer ones, would
    break this (which the last step alone would hide, because it returns x̂)."""
    x = torch.linspace(-1, 1, 1024).view(1, 1, 32, 32).expand(100, -1, -1, -1)
    _, seen = drawn_with_a_perfect_denoiser(x, "x", steps, ancestral)
    count = x.numel()
    for z, time in seen:
        alpha, sigma = level(time)
        noise = (z - alpha * x) / sigma
        assert abs(noise.mean()) < 5 / math.sqrt(count)
        assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize("steps", [2, 7, 50])
def test_ddim_keeps_the_noise_it_started_with(steps):
    x = images(4)
    _, seen = drawn_with_a_perfect_denoiser(x, "x", steps, ancestral=False)
    alpha, sigma = level(seen[0][1])
    noise = (seen[0][0] - alpha * x) / sigma
    for z, time in seen:
        alpha, sigma = level(time)
        torch.testing.assert_close(z, alpha * x + sigma * noise, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("t", "s"), [(1.0, 0.999), (1.0, 0.5), (1.0, 0.0), (0.9, 0.1), (0.55, 0.5), (0.3, 0.0)]
)
def test_ancestral_posterior_is_right_between_any_two_times(t, s):
    """z_t ~ q(z_t | x), then one step with the true x: the mean is α_s·x, the variance σ_s²."""
    zeta_t, zeta_s = Diffusion().logsnr(torch.tensor([t, s]))
    alpha, sigma = alpha_sigma(zeta_t)
    noise = torch.randn(2, 200_000, generator=generator())
    x = torch.tensor(0.7)
    z = ancestral_step(x, alpha * x + sigma * noise[0], zeta_t, zeta_s, noise[1])
    alpha_s, sigma_s = alpha_sigma(zeta_s)
    assert abs(z.mean() - alpha_s * x) < 5 * sigma_s / math.sqrt(200_000)
    assert abs(z.var() / sigma_s**2 - 1) < 5 * math.sqrt(2 / 200_000)


def test_ancestral_posterior_is_gaussian_conditioning():
    """Against q(z_s | z_t, x) computed from the joint covariance of z_s and z_t."""
    zeta_t, zeta_s = torch.tensor([-1.0, 2.5], dtype=torch.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(zeta_t), alpha_sigma(zeta_s)
    z, x, e = torch.tensor([0.3, -0.8, 1.7], dtype=torch.float64)
    covariance = alpha_t / alpha_s * sigma_s**2
    mean = alpha_s * x + covariance / sigma_t**2 * (z - alpha_t * x)
    variance = sigma_s**2 - covariance**2 / sigma_t**2
    got = ancestral_step(x, z, zeta_t, zeta_s, e)
    torch.testing.assert_close(got, mean + variance.sqrt() * e)
    torch.testing.assert_close(ancestral_step(x, z, zeta_t, zeta_s, 0 * e), mean)


@both_samplers
def test_the_optimal_denoiser_of_two_values_draws_both_in_proportion(ancestral):
    """E[x | z] of a known distribution, x = −0.8 (30 %) or 0.5 (70 %), draws that distribution."""
    values, shares = torch.tensor([-0.8, 0.5]), torch.tensor([0.3, 0.7])

    def predict(step, inputs):
        z, time = inputs
        alpha, sigma = level(time)
        score = -((z.unsqueeze(-1) - alpha.unsqueeze(-1) * values) ** 2)
        posterior = torch.softmax(score / (2 * sigma.unsqueeze(-1) ** 2) + shares.log(), dim=-1)
        return (posterior * values).sum(-1)

    noise = SampleNoise(0, list(range(20)))
    x = Diffusion("x").sample(predict, noise, (1, 16, 16), sampler(200, ancestral, True))
    low, high = (x + 0.8).abs() < 0.02, (x - 0.5).abs() < 0.02
    assert (low | high).float().mean() > 0.99
    assert abs(low.float().mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.numel())


def test_sampling_runs_from_pure_noise_down_to_the_last_time():
    _, seen = drawn_with_a_perfect_denoiser(images(300), "v", 5, ancestral=True)
    times = torch.stack([time[0] for _, time in seen])
    assert (times.diff() < 0).all() and times[0] > 0.999 and times[-1] < 0.25
    start = seen[0][0]
    assert abs(start.mean()) < 0.06 and abs(start.std() - 1) < 0.06


@both_samplers
def test_clip_keeps_the_predicted_image_in_range(ancestral):
    def predict(step, inputs):
        return torch.full_like(inputs[0], 3.0)

    for clip, expected in [(True, 1.0), (False, 3.0)]:
        noise = SampleNoise(0, [0])
        x = Diffusion("x").sample(predict, noise, (1, 2, 2), sampler(3, ancestral, clip))
        assert torch.equal(x, torch.full((1, 1, 2, 2), expected))


def test_ddim_step_to_no_noise_returns_x():
    x, z = images(2), torch.randn(2, 2, 4, 4, generator=generator())
    done = ddim_step(x, z, torch.tensor(0.0), torch.tensor(60.0))
    torch.testing.assert_close(done, x, atol=1e-6, rtol=0)
