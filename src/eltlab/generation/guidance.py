"""Classifier-free guidance (arXiv 2207.12598): unconditional + w·(conditional − unconditional)."""

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    predict: Callable[[tuple[Tensor, ...], Tensor], Tensor],
    inputs: tuple[Tensor, ...],
    labels_B: Tensor,
    null: int,
    scale: float,
) -> Tensor:
    """The guided prediction; both halves of CFG travel in one pass of twice the batch."""
    null_B = torch.full_like(labels_B, null)
    if scale == 1:
        return predict(inputs, labels_B)
    if scale == 0:
        return predict(inputs, null_B)
    doubled = tuple(torch.cat([part, part]) for part in inputs)
    conditional, unconditional = predict(doubled, torch.cat([labels_B, null_B])).chunk(2)
    return unconditional + scale * (conditional - unconditional)
