"""The objective of a run: what is learned, and how samples are drawn."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from eltlab.common.errors import UserError
from eltlab.common.seeds import BatchNoise, SampleNoise
from eltlab.config.schema import Config, DiffusionConfig, FlowConfig, MaskedConfig
from eltlab.generation.diffusion import Diffusion
from eltlab.generation.flow import Flow
from eltlab.generation.masked import Masked


class Objective(Protocol):
    def corrupt(
        self, x: Any, noise: BatchNoise, u: Tensor | None = None, /
    ) -> tuple[tuple[Tensor, ...], Any]:
        """The network's inputs, and the target, for a slice x of a batch.

        u: in [0, 1), how far each sample of the whole batch is corrupted; noise.own_rows(u) are the rows
        of this slice. None: drawn from the noise.
        """

    def level(self, u: Tensor) -> Tensor:
        """What u stands for: the time of diffusion and flow, the mask ratio of masked models."""

    def losses(self, pred: Tensor, target: Any) -> Tensor:
        """Loss of each example against the data: [B] for the B rows of the slice. Their mean over the whole
        batch is its loss."""

    def distill(self, student: Tensor, teacher: Tensor, target: Any) -> Tensor:
        """The student's loss against the teacher, without a gradient to the teacher: a scalar for the slice,
        whose mean over the slices is that of the batch."""

    def sample(
        self,
        predict: Callable[[int, tuple[Tensor, ...]], Tensor],
        noise: SampleNoise,
        shape: tuple[int, ...],
        sampler: Any,
    ) -> Tensor:
        """Draws [samples, *shape]. predict(step, inputs) is the guided network at a step."""


def check_losses(objective: Any, config: Config) -> None:
    """Raises UserError if an objective cannot be trained: those written for old versions have `loss`."""
    if not hasattr(objective, "losses"):
        raise UserError(
            f"objective={config.objective.file}: has no method losses(pred, target), which returns one loss "
            "per example; add it (docs/extending.md)"
        )


def build_objective(config: Config) -> Objective:
    """The objective of a configuration. An objective from a user's file builds itself."""
    objective = config.objective
    if objective.file is not None:
        return objective.build(config)
    match objective:
        case MaskedConfig():
            return Masked(config.data.codebook, objective.label_smoothing)
        case DiffusionConfig():
            bounds = objective.logsnr_min, objective.logsnr_max
            return Diffusion(objective.prediction, objective.bias, *bounds, objective.shift)
        case FlowConfig():
            return Flow(objective.time_mean, objective.time_std, objective.shift)
    raise AssertionError(f"no objective {objective.name}")
