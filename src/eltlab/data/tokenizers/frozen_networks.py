"""What all pretrained tokenizers share: frozen networks in full precision, RGB input, and a hash."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eltlab.common.cache import digest
from eltlab.common.errors import UserError

Tensors = dict[str, Tensor]
Settings = dict[str, Any]  # can be written as JSON


def freeze(network: nn.Module) -> nn.Module:
    return network.float().eval().requires_grad_(False)


def assign_tensors(network: nn.Module, tensors: Tensors) -> nn.Module:
    """Gives a network from the meta device these tensors in float32, and freezes it.

    Raises RuntimeError if a tensor is missing, unknown or of another shape.
    """
    # Contiguous whatever file they come from: PyTorch chooses kernels by the memory layout.
    plain = {name: value.float().contiguous() for name, value in tensors.items()}
    network.load_state_dict(plain, assign=True)
    return freeze(network)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inference in float32. With TF32, or inside the autocast of a training step, latents and ids would
    depend on where they are computed."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
            torch.autocast(device.type, enabled=False),
            torch.inference_mode(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_rgb(images: Tensor, factor: int) -> Tensor:
    """uint8 [N, 1 or 3, H, W] → [N, 3, H, W]. Raises UserError if factor does not divide H and W."""
    side = next((side for side in images.shape[-2:] if side % factor), None)
    if side is not None:
        raise UserError(
            f"data.size={side}: a latent of this tokenizer covers {factor}x{factor} pixels; "
            f"choose a multiple of {factor}"
        )
    # Contiguous like the weights: PyTorch chooses kernels by the memory layout.
    return images.expand(-1, 3, -1, -1).contiguous()


def fingerprint(tensors: Tensors, settings: Settings) -> str:
    """Twelve hex digits of the settings and of all tensors with their names."""
    parts: list[Any] = [json.dumps(settings, sort_keys=True)]
    for name, value in sorted(tensors.items()):
        parts += [name, value.cpu().float().numpy()]
    return digest(*parts)
