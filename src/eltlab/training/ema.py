"""EDM2's power-function averages of the backbone's parameters (Karras et al., arXiv 2312.02696).

After t steps the weights θ(τ) have a share proportional to τ^γ, so an average looks the same at every run
length. Its length σ_rel is the standard deviation of that profile as a share of the run (section 3.1).
"""

import copy
import math

import torch
from torch import nn


def ema_copy(backbone: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode, which `ema_update` averages and sampling uses."""
    return copy.deepcopy(backbone).requires_grad_(False).eval()


def relative_length(gamma: float) -> float:
    """σ_rel = (γ + 1)^½ (γ + 2)^−1 (γ + 3)^−½ of the profile τ^γ."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def exponent(length: float) -> float:
    """The γ ≥ 0 of a length σ_rel in (0, 0.28]: the inverse of `relative_length`, by bisection."""
    low, high = 0.0, 1 / length  # σ_rel falls with γ and is below 1/(γ + 2)
    for _ in range(100):  # until the two are neighbours
        middle = (low + high) / 2
        low, high = (middle, high) if relative_length(middle) > length else (low, middle)
    return low


def ema_decay(gamma: float, step: int) -> float:
    """β_γ(t) = (1 − 1/t)^(γ + 1) at step t = step + 1. It is 0 at the first step: the average forgets the
    initial weights."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


@torch.no_grad()
def ema_update(average: nn.Module, live: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·live, one fused call over all parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
