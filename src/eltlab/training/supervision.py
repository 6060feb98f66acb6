"""What the exits of one pass are trained on: final (vanilla loop), ilsd, deep, random_depth.

A supervision names the exits that a step reads, and turns their predictions into named loss terms. It
does not know the network, and works with every objective that has `losses` and `distill`.
"""

import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from eltlab.common.seeds import fold
from eltlab.config.schema import DeepConfig, IlsdConfig, RandomDepthConfig, SupervisionConfig, WeightConfig
from eltlab.generation.objective import Objective

Predictions = dict[int, Tensor]  # by exit, i.e. by loop count


class Losses(NamedTuple):
    """The loss that is minimised, and the terms and settings of this step that are logged."""

    total: Tensor
    log: Mapping[str, Tensor | float]


class Supervision(Protocol):
    def exits(self, step: int) -> tuple[int, ...]:
        """The loop counts after which the pass of this step is read; it runs the largest."""

    def losses(self, objective: Objective, preds: Predictions, target: Any, step: int) -> Losses:
        """The losses of the predictions at these exits."""


class Final:
    """Ground truth on the last exit only: the vanilla loop, and every model with one loop."""

    def __init__(self, loops: int) -> None:
        self.loops = loops

    def exits(self, step: int) -> tuple[int, ...]:
        return (self.loops,)

    def losses(self, objective: Objective, preds: Predictions, target: Any, step: int) -> Losses:
        [last] = self.exits(step)
        truth = objective.losses(preds[last], target).mean()
        return Losses(truth, {"loss": truth, f"loss_exit_{last}": truth})


class Ilsd:
    """Intra-Loop Self Distillation (ELT, arXiv 2604.09168):

    loss = GT(F_Lmax) + λ·GT(F_Lint) + (1 − λ)·distill·Dist(F_Lint, stopgrad(F_Lmax))

    One L_int per step for the whole batch, uniform on min_loops ≤ L_int < L_max. It is drawn from
    (seed, step), so it is the same on every rank. λ falls over the `steps` of the run.
    """

    def __init__(self, loops: int, config: IlsdConfig, seed: int, steps: int) -> None:
        self.loops, self.seed, self.steps = loops, seed, steps
        self.min_loops, self.distill, self.weight = config.min_loops, config.distill, config.weight

    def student(self, step: int) -> int:
        """L_int of this step."""
        return random.Random(fold(self.seed, "student", step)).randrange(self.min_loops, self.loops)

    def exits(self, step: int) -> tuple[int, ...]:
        return (self.student(step), self.loops)

    def losses(self, objective: Objective, preds: Predictions, target: Any, step: int) -> Losses:
        student, teacher = preds[self.student(step)], preds[self.loops]
        weight = ramp(self.weight, step, self.steps)  # λ
        teacher_truth = objective.losses(teacher, target).mean()
        student_truth = objective.losses(student, target).mean()
        # distill stops the gradient of the teacher, which learns from its own ground truth only.
        distilled = objective.distill(student, teacher, target)
        total = teacher_truth + weight * student_truth + (1 - weight) * self.distill * distilled
        log: dict[str, Tensor | float] = {
            "loss": total,
            f"loss_exit_{self.loops}": teacher_truth,
            f"loss_exit_{self.student(step)}": student_truth,
            "gap": student_truth - teacher_truth,
            "loss_distill": distilled,
            "weight": weight,
            "student": self.student(step),
        }
        return Losses(total, log)


class Deep:
    """Ground truth on every exit, without a teacher (Looped-DiT, arXiv 2609.40305; R-MDM, 2606.18022):

    loss = GT(F_L) + Σ_ℓ<L w_ℓ·GT(F_ℓ)
    """

    def __init__(self, loops: int, config: DeepConfig) -> None:
        inner = config.inner if isinstance(config.inner, list) else [config.inner] * (loops - 1)
        self.weights = dict(enumerate([*map(float, inner), 1.0], start=1))

    def exits(self, step: int) -> tuple[int, ...]:
        return tuple(self.weights)

    def losses(self, objective: Objective, preds: Predictions, target: Any, step: int) -> Losses:
        truths = {exit: objective.losses(preds[exit], target).mean() for exit in self.weights}
        # Starts from the last loss and not from Python's 0: the order of the sum sets its last bits.
        total = truths[len(truths)]
        for exit in range(1, len(truths)):
            total = total + self.weights[exit] * truths[exit]
        return Losses(total, {"loss": total} | {f"loss_exit_{n}": t for n, t in truths.items()})


class RandomDepth(Final):
    """Ground truth on the last exit of a pass of random depth (as in Huginn), the same on every rank."""

    def __init__(self, loops: int, config: RandomDepthConfig, seed: int) -> None:
        super().__init__(loops)
        self.seed, self.depth_distribution = seed, config.depths(loops)

    def exits(self, step: int) -> tuple[int, ...]:
        counts, weights = zip(*self.depth_distribution.items(), strict=True)
        return tuple(random.Random(fold(self.seed, "depth", step)).choices(counts, weights))

    def losses(self, objective: Objective, preds: Predictions, target: Any, step: int) -> Losses:
        total, log = super().losses(objective, preds, target, step)
        return Losses(total, {**log, "depth": self.exits(step)[0]})


def ramp(weight: WeightConfig, step: int, steps: int) -> float:
    """λ at step s of 0…S − 1: start at the first, end at the last. Linear from 1 to 0: 1 − s/(S − 1)."""
    progress = step / max(steps - 1, 1)
    if weight.shape == "constant":
        progress = 0.0
    elif weight.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return weight.start + (weight.end - weight.start) * progress


def build_supervision(config: SupervisionConfig, loops: int, seed: int, steps: int) -> Supervision:
    """The supervision of a configuration."""
    if config.file is not None:  # an extension of the user (docs/extending.md)
        return config.build(loops, seed, steps)
    match config:
        case IlsdConfig():
            return Ilsd(loops, config, seed, steps)
        case DeepConfig():
            return Deep(loops, config)
        case RandomDepthConfig():
            return RandomDepth(loops, config, seed)
    return Final(loops)
