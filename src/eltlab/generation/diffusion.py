"""Variance-preserving diffusion: cosine log-SNR, sigmoid weighting, DDPM and DDIM samplers.

z_t = α·x + σ·ε with α² = sigmoid(ζ) and σ² = sigmoid(−ζ), where ζ is the log-SNR. Sources: Variational
Diffusion Models (VDM, arXiv 2107.00630), Simple Diffusion (2301.11093), Simpler Diffusion (2410.19324);
ELT (2604.09168).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import DiffusionSamplerConfig


class NoisyTarget(NamedTuple):
    """The target of a prediction for z. logsnr and weight broadcast over the image."""

    x: Tensor
    z: Tensor
    logsnr: Tensor
    weight: Tensor


class Diffusion:
    """The diffusion objective and its samplers, for images or latents x [B, C, H, W].

    Args:
        prediction: what the network predicts: v = α·ε − σ·x, epsilon or x.
        bias: b of the sigmoid weighting.
        logsnr_min, logsnr_max: ζ at t = 1 and t = 0, before the shift.
        shift: added to ζ, 2·ln(reference size / size) in Simple Diffusion.
    """

    def __init__(
        self,
        prediction: str = "v",
        bias: float = 0.0,
        logsnr_min: float = -15.0,
        logsnr_max: float = 15.0,
        shift: float = 0.0,
    ) -> None:
        self.prediction = prediction
        self.bias = bias
        self.shift = shift
        # t is rescaled so that ζ = −2·ln tan(π·t/2) stays within [logsnr_min, logsnr_max].
        self.t_first = 2 / math.pi * math.atan(math.exp(-logsnr_max / 2))
        self.t_last = 2 / math.pi * math.atan(math.exp(-logsnr_min / 2))

    def angle(self, t: Tensor) -> Tensor:
        """π·t′/2, where t′ is t in [0, 1] rescaled to the bounds of ζ."""
        # In float64, because tan is steep at both ends.
        return math.pi / 2 * (self.t_first + (self.t_last - self.t_first) * t.double())

    def logsnr(self, t: Tensor) -> Tensor:
        """ζ(t). It falls from logsnr_max + shift at t = 0 to logsnr_min + shift at t = 1."""
        return (-2 * torch.log(torch.tan(self.angle(t))) + self.shift).float()

    def weight(self, t: Tensor) -> Tensor:
        """w(t) = −(dζ/dt)·e^b·sigmoid(ζ − b) on the error of x; −dζ/dt = 2π/sin(π·t′)·dt′/dt."""
        slope = 2 * math.pi / torch.sin(2 * self.angle(t)) * (self.t_last - self.t_first)
        return slope.float() * math.exp(self.bias) * torch.sigmoid(self.logsnr(t) - self.bias)

    def corrupt(
        self, x: Tensor, noise: BatchNoise, t: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], NoisyTarget]:
        """The network's inputs (z, time), and the target. t: times of the whole batch; None: U(0, 1)."""
        t = noise.uniform() if t is None else noise.own_rows(t)
        logsnr = self.logsnr(t)
        zeta = logsnr.view(-1, *[1] * (x.dim() - 1))
        alpha, sigma = alpha_sigma(zeta)
        z = alpha * x + sigma * noise.normal(*x.shape[1:])
        return (z, time_input(logsnr)), NoisyTarget(x, z, zeta, self.weight(t).view_as(zeta))

    def level(self, u: Tensor) -> Tensor:
        """The time itself."""
        return u

    def to_x(self, pred: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
        """The predicted x, whatever the network predicts."""
        alpha, sigma = alpha_sigma(logsnr)
        pred = pred.float()
        if self.prediction == "x":
            return pred
        if self.prediction == "epsilon":
            return (z - sigma * pred) / alpha
        return alpha * z - sigma * pred

    def losses(self, pred: Tensor, target: NoisyTarget) -> Tensor:
        """GT = w(t)·‖x̂ − x‖², mean over the image: [B]."""
        error = self.to_x(pred, target.z, target.logsnr) - target.x
        return (target.weight * error.square()).flatten(1).mean(dim=1)

    def distill(self, student: Tensor, teacher: Tensor, target: NoisyTarget) -> Tensor:
        """Dist = w(t)·‖x̂_student − stopgrad(x̂_teacher)‖²."""
        towards = self.to_x(teacher.detach(), target.z, target.logsnr)
        error = self.to_x(student, target.z, target.logsnr) - towards
        return (target.weight * error.square()).mean()

    def sample(
        self,
        predict: Callable[[int, tuple[Tensor, ...]], Tensor],
        noise: SampleNoise,
        shape: tuple[int, ...],
        sampler: DiffusionSamplerConfig,
    ) -> Tensor:
        """Draws x [samples, *shape]. predict(step, (z, time)) is the (guided) network.

        sampler.name is ddpm (ancestral) or ddim. Times fall uniformly from 1 to 0. Each step uses the
        posterior between its own two times, so any step count is exact for a perfect denoiser. The last
        step returns x̂.
        """
        steps = sampler.steps
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        zetas = self.logsnr(times).to(noise.device)
        z = noise.normal(*shape)
        for step in range(steps):
            zeta, zeta_next = zetas[step], zetas[step + 1]
            pred = predict(step, (z, time_input(zeta).expand(len(z))))
            x = self.to_x(pred, z, zeta)
            if sampler.clip:
                x = x.clamp(-1, 1)
            if step == steps - 1:
                break
            if sampler.name == "ddpm":
                z = ancestral_step(x, z, zeta, zeta_next, noise.normal(*shape))
            else:
                z = ddim_step(x, z, zeta, zeta_next)
        return x


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def time_input(logsnr: Tensor) -> Tensor:
    """The time that the network sees, in [0, 1]: the t at which the unshifted cosine schedule has this ζ."""
    return 2 / math.pi * torch.atan(torch.exp(-logsnr / 2))


def ancestral_step(x: Tensor, z: Tensor, zeta: Tensor, zeta_next: Tensor, noise: Tensor) -> Tensor:
    """A sample of q(z_s | z_t, x) (VDM, App. A): mean α_s·((1 − c)·z/α_t + c·x), variance σ_s²·c, with
    c = 1 − SNR_t/SNR_s."""
    alpha, _ = alpha_sigma(zeta)
    alpha_next, sigma_next = alpha_sigma(zeta_next)
    c = -torch.expm1(zeta - zeta_next)  # expm1: the two log-SNRs of a short step are close
    mean = alpha_next * ((1 - c) * z / alpha + c * x)
    return mean + sigma_next * c.sqrt() * noise


def ddim_step(x: Tensor, z: Tensor, zeta: Tensor, zeta_next: Tensor) -> Tensor:
    """z_s = α_s·x̂ + σ_s·ε̂ with ε̂ = (z − α_t·x̂)/σ_t (arXiv 2010.02502, η = 0)."""
    alpha, sigma = alpha_sigma(zeta)
    alpha_next, sigma_next = alpha_sigma(zeta_next)
    return alpha_next * x + sigma_next * (z - alpha * x) / sigma
