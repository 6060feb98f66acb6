"""The torch device that a run uses: which one, its precision, its name and peak memory."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from eltlab.common.machine import processor

if TYPE_CHECKING:
    import torch
import torch

from eltlab.common.errors import UserError


def device_name(device: "torch.device") -> str:
    """The accelerator's name, or the processor's and how many threads torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def peak_memory_bytes(device: "torch.device") -> int:
    """The most this process has held: allocated by torch on CUDA, resident on the CPU."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def choose_device(accelerator: str) -> torch.device:
    """The device of trainer.accelerator; auto: CUDA where there is one, else the CPU."""
    there = torch.cuda.is_available()
    if accelerator == "cuda" and not there:
        raise UserError("trainer.accelerator=cuda: torch finds no CUDA device here; choose cpu")
    return torch.device("cuda" if there and accelerator != "cpu" else "cpu")


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's name; auto: bf16 autocast on CUDA that has it, float32 elsewhere."""
    if precision != "auto":
        return precision
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What a forward pass runs in: torch's bf16 autocast for bf16-mixed, nothing for 32-true."""
    if precision == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
