"""Exponential moving average of the backbone's parameters, and of nothing else."""

import copy

import torch
from torch import nn


def ema_copy(backbone: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode, which `ema_update` averages and sampling uses."""
    return copy.deepcopy(backbone).requires_grad_(False).eval()


def ema_decay(decay: float, step: int) -> float:
    """min(decay, (1 + s)/(10 + s)): a warm-up, so that early averages forget the initial weights."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def ema_update(average: nn.Module, live: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·live, one fused call over all parameters."""
    torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)
