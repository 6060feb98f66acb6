"""Networks whose every parameter counts."""

import torch
from torch import nn


def perturbed(module: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """The module with noise on every parameter: layers that start at zero hide what feeds them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return module
