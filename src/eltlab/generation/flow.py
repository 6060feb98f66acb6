"""Rectified flow: straight lines from data to noise, logit-normal times, Euler and Heun samplers.

z_t = (1 − t)·x + t·ε, and the network predicts the velocity dz/dt = ε − x. Sources: Rectified Flow (arXiv
2209.03003); Stable Diffusion 3 (SD3, 2403.03206) for logit-normal times and the shift of t; EDM
(2206.00364) for Heun's method with a last Euler step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import FlowSamplerConfig


class Flow:
    """The flow objective and its samplers, for images or latents x [B, C, H, W].

    Args:
        time_mean, time_std: of the normal distribution of logit(t) in training.
        shift: s of t ↦ s·t/(1 + (s − 1)·t) in training and sampling. Above 1: more time at high noise.
    """

    def __init__(self, time_mean: float = 0.0, time_std: float = 1.0, shift: float = 1.0) -> None:
        self.time_mean, self.time_std, self.shift = time_mean, time_std, shift

    def level(self, u: Tensor) -> Tensor:
        """The time at quantile u of the shifted logit-normal distribution: u ~ U(0, 1) gives training's t."""
        normal = torch.special.ndtri(u.double())
        return self.shift_time(torch.sigmoid(self.time_mean + self.time_std * normal)).float()

    def shift_time(self, t: Tensor) -> Tensor:
        """SD3, Eq. 23, with shift = √(m/n): the time at which m pixels are as uncertain as n are at t."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def corrupt(
        self, x: Tensor, noise: BatchNoise, u: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The network's inputs (z, t), and the velocity. u: quantiles of t, whole batch; None: U(0, 1)."""
        time = self.level(noise.uniform() if u is None else noise.own_rows(u))
        epsilon = noise.normal(*x.shape[1:])
        t = time.view(-1, *[1] * (x.dim() - 1))
        return ((1 - t) * x + t * epsilon, time), epsilon - x

    def losses(self, pred: Tensor, target: Tensor) -> Tensor:
        """GT = ‖v̂ − (ε − x)‖², mean over the image: [B]. The distribution of t weights it."""
        return (pred.float() - target).square().flatten(1).mean(dim=1)

    def distill(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Dist = ‖v̂_student − stopgrad(v̂_teacher)‖²."""
        return (student.float() - teacher.detach().float()).square().mean()

    def sample(
        self,
        predict: Callable[[int, tuple[Tensor, ...]], Tensor],
        noise: SampleNoise,
        shape: tuple[int, ...],
        sampler: FlowSamplerConfig,
    ) -> Tensor:
        """Draws x [samples, *shape] along the ODE from t = 1 to 0. predict(step, (z, t)) is the velocity.

        sampler.name is euler, or heun with two passes per step. The last step is always Euler's: Heun
        would evaluate it at t = 0, where the network has hardly been trained.
        """
        steps = sampler.steps
        times = self.shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).float()
        times = times.to(noise.device)
        z = noise.normal(*shape)
        for step in range(steps):
            time, after = times[step], times[step + 1]
            velocity = predict(step, (z, time.expand(len(z))))
            if sampler.name == "heun" and step < steps - 1:
                ahead = z + (after - time) * velocity
                velocity = (velocity + predict(step, (ahead, after.expand(len(z))))) / 2
            z = z + (after - time) * velocity
        return z
