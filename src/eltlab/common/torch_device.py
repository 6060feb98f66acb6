"""The torch device of a run: which one, its precision, its name and its peak memory."""

import resource
import sys
from contextlib import AbstractContextManager, nullcontext

import torch

from eltlab.common.errors import UserError
from eltlab.common.machine_facts import name_cpu


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return name_cpu(torch.get_num_threads())


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory this process has used: allocated by torch on CUDA, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def choose_device(accelerator: str) -> torch.device:
    """The device for trainer.accelerator; auto is CUDA if available, else the CPU."""
    available = torch.cuda.is_available()
    if accelerator == "cuda" and not available:
        raise UserError("trainer.accelerator=cuda: torch finds no CUDA device here; choose cpu")
    return torch.device("cuda" if available and accelerator != "cpu" else "cpu")


def choose_precision(precision: str, device: torch.device) -> str:
    """Lightning's name; auto is bf16 autocast if the GPU supports it natively, else float32."""
    if precision != "auto":
        return precision
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if bf16 else "32-true"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """The context of a forward pass: bf16 autocast for bf16-mixed, none for 32-true."""
    if precision == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
