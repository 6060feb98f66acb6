"""Rectified flow: straight lines from data to noise, logit-normal times, Euler and Heun samplers.

z_t = (1 − t)·x + t·ε; the network predicts the velocity dz/dt = ε − x. Sources: Rectified Flow (arXiv
2209.03003); logit-normal times and the shift of t, Stable Diffusion 3 (2403.03206); Heun with a last
Euler step, EDM (2206.00364).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import FlowSamplerConfig


class Flow:
    """The flow objective and its samplers, for images or latents x [B, C, H, W].

    Args:
        time_mean, time_std: of the normal law of logit(t) in training.
        shift: s of t ↦ s·t/(1 + (s − 1)·t) in training and sampling; above 1, more time at high noise.
    """

    def __init__(self, time_mean: float = 0.0, time_std: float = 1.0, shift: float = 1.0) -> None:
        self.time_mean, self.time_std, self.shift = time_mean, time_std, shift

    def level(self, u: Tensor) -> Tensor:
        """The time: the quantile u of the logit-normal law, shifted. So u ~ U(0, 1) gives training's t."""
        normal = torch.special.ndtri(u.double())
        return self.shifted(torch.sigmoid(self.time_mean + self.time_std * normal)).float()

    def shifted(self, t: Tensor) -> Tensor:
        """SD3, Eq. 23: the time at which `shift` times the noise hides as much."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def corrupt(
        self, x: Tensor, noise: BatchNoise, u: Tensor | None = None
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The network's inputs (z, t) and the velocity, at a quantile u ~ U(0, 1) a sample unless given."""
        time = self.level(noise.uniform() if u is None else noise.own_rows(u))
        epsilon = noise.normal(*x.shape[1:])
        t = time.view(-1, *[1] * (x.dim() - 1))
        return ((1 - t) * x + t * epsilon, time), epsilon - x

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """GT = ‖v̂ − (ε − x)‖², mean over the batch and the image; the law of t is the weighting."""
        return (pred.float() - target).square().mean()

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
        """Draws x [samples, *shape] along the ODE from t = 1 to 0; predict(step, (z, t)) is the velocity.

        sampler.name is euler or heun: two evaluations a step, but in the last, which is Euler's: at
        t = 0 the network has hardly been trained.
        """
        steps = sampler.steps
        times = self.shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64)).float()
        times = times.to(noise.device)
        z = noise.normal(*shape)
        for step in range(steps):
            time, after = times[step], times[step + 1]
            velocity = predict(step, (z, time.expand(len(z))))
            if sampler.name == "heun" and step < steps - 1:
                there = z + (after - time) * velocity
                velocity = (velocity + predict(step, (there, after.expand(len(z))))) / 2
            z = z + (after - time) * velocity
        return z
