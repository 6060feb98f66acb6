"""Classifier-free guidance (arXiv 2207.12598): unconditional + w·(conditional − unconditional)."""

from collections.abc import Callable

import torch
from torch import Tensor


def guide(
    predict: Callable[[tuple[Tensor, ...], Tensor], Tensor],
    inputs: tuple[Tensor, ...],
    labels_B: Tensor,
    null: int,
    scale: float,
) -> Tensor:
    """The guided prediction: one pass of twice the batch, or of one half alone if scale is 0 or 1.

    null: the label that stands for no class.
    """
    null_B = torch.full_like(labels_B, null)
    if scale == 1:
        return predict(inputs, labels_B)
    if scale == 0:
        return predict(inputs, null_B)
    doubled = tuple(torch.cat([part, part]) for part in inputs)
    conditional, unconditional = predict(doubled, torch.cat([labels_B, null_B])).chunk(2)
    return unconditional + scale * (conditional - unconditional)
