"""What the exits of one pass are trained towards: final (vanilla loop), ilsd, deep, random_depth.

A supervision names the exits it wants at a step and turns their predictions into named terms. It
knows no network: with any objective that has `loss` and `distill` it is the same code.
"""

import math
import random
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from eltlab.common.seeds import fold
from eltlab.config.schema import (
    DeepConfig,
    IlsdConfig,
    RandomDepthConfig,
    SupervisionConfig,
    WeightConfig,
)
from eltlab.generation.objective import Objective


class Losses(NamedTuple):
    """The loss that is minimised, and the terms and settings of this step for the log."""

    total: Tensor
    log: Mapping[str, Tensor | float]


class Supervision(Protocol):
    def exits(self, step: int) -> tuple[int, ...]:
        """The loop counts whose states the pass of this step must keep; it runs the largest."""

    def losses(
        self, objective: Objective, preds: dict[int, Tensor], target: Any, step: int
    ) -> Losses:
        """What the predictions at these exits cost."""


class Final:
    """Only the last exit learns: the vanilla loop, and every model with one loop."""

    def __init__(self, loops: int) -> None:
        self.loops = loops

    def exits(self, step: int) -> tuple[int, ...]:
        return (self.loops,)

    def losses(
        self, objective: Objective, preds: dict[int, Tensor], target: Any, step: int
    ) -> Losses:
        truth = objective.loss(preds[self.loops], target)
        return Losses(truth, {"loss": truth, f"loss_exit_{self.loops}": truth})


class Ilsd:
    """Intra-Loop Self Distillation (PAPER, ILSD):

    loss = GT(F_Lmax) + λ·GT(F_Lint) + (1 − λ)·distill·Dist(F_Lint, stopgrad(F_Lmax))

    One L_int a step for the whole batch, uniform on min_loops ≤ L_int < L_max, drawn from
    (seed, step): the same on every rank. λ falls over the run's `steps`.
    """

    def __init__(self, loops: int, config: IlsdConfig, seed: int, steps: int) -> None:
        self.loops, self.seed, self.steps = loops, seed, steps
        self.min_loops, self.distill, self.weight = config.min_loops, config.distill, config.weight

    def student(self, step: int) -> int:
        """L_int of this step."""
        return random.Random(fold(self.seed, "student", step)).randrange(self.min_loops, self.loops)

    def exits(self, step: int) -> tuple[int, ...]:
        return (self.student(step), self.loops)

    def losses(
        self, objective: Objective, preds: dict[int, Tensor], target: Any, step: int
    ) -> Losses:
        student, teacher = preds[self.student(step)], preds[self.loops]
        truth_weight = ramp(self.weight, step, self.steps)
        teacher_truth = objective.loss(teacher, target)
        student_truth = objective.loss(student, target)
        # The stop-gradient is inside distill, on the teacher only; it keeps its own ground truth.
        distilled = objective.distill(student, teacher, target)
        total = (
            teacher_truth
            + truth_weight * student_truth
            + (1 - truth_weight) * self.distill * distilled
        )
        log: dict[str, Tensor | float] = {
            "loss": total,
            f"loss_exit_{self.loops}": teacher_truth,
            f"loss_exit_{self.student(step)}": student_truth,
            "gap": student_truth - teacher_truth,
            "loss_distill": distilled,
            "weight": truth_weight,
            "student": self.student(step),
        }
        return Losses(total, log)


class Deep:
    """Ground truth on every exit, no teacher (Looped-DiT, arXiv 2609.40305; R-MDM, 2606.18022):

    loss = GT(F_L) + Σ_ℓ<L w_ℓ·GT(F_ℓ)
    """

    def __init__(self, loops: int, config: DeepConfig) -> None:
        inner = config.inner
        weights = inner if isinstance(inner, list) else [inner] * (loops - 1)
        self.weights = dict(enumerate([*map(float, weights), 1.0], start=1))

    def exits(self, step: int) -> tuple[int, ...]:
        return tuple(self.weights)

    def losses(
        self, objective: Objective, preds: dict[int, Tensor], target: Any, step: int
    ) -> Losses:
        truths = {exit: objective.loss(preds[exit], target) for exit in self.weights}
        # The last exit first: the sum starts from a loss, not from Python's 0.
        total = truths[len(truths)]
        for exit in range(1, len(truths)):
            total = total + self.weights[exit] * truths[exit]
        return Losses(total, {"loss": total} | {f"loss_exit_{n}": t for n, t in truths.items()})


class RandomDepth:
    """Each step runs a random number of loops and trains the last of them (as Huginn does).

    The count is drawn from (seed, step) by the law: the same on every rank.
    """

    def __init__(self, loops: int, config: RandomDepthConfig, seed: int) -> None:
        self.law = config.depths(loops)
        self.seed = seed

    def depth(self, step: int) -> int:
        """The loops of this step."""
        draw = random.Random(fold(self.seed, "depth", step))
        return draw.choices(list(self.law), list(self.law.values()))[0]

    def exits(self, step: int) -> tuple[int, ...]:
        return (self.depth(step),)

    def losses(
        self, objective: Objective, preds: dict[int, Tensor], target: Any, step: int
    ) -> Losses:
        depth = self.depth(step)
        truth = objective.loss(preds[depth], target)
        return Losses(truth, {"loss": truth, f"loss_exit_{depth}": truth, "depth": depth})


def ramp(weight: WeightConfig, step: int, steps: int) -> float:
    """λ at step 0…steps − 1: start at the first, end at the last (linear: 1 − s/(S − 1) for 1 → 0)."""
    progress = step / max(steps - 1, 1)
    if weight.shape == "constant":
        progress = 0.0
    elif weight.shape == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return weight.start + (weight.end - weight.start) * progress


def build_supervision(config: SupervisionConfig, loops: int, seed: int, steps: int) -> Supervision:
    """The supervision of a configuration; one from a file of the user's builds itself."""
    if config.file is not None:
        return config.build(loops, seed, steps)
    match config:
        case IlsdConfig():
            return Ilsd(loops, config, seed, steps)
        case DeepConfig():
            return Deep(loops, config)
        case RandomDepthConfig():
            return RandomDepth(loops, config, seed)
    return Final(loops)
