"""Facts about the machine and the code that a row records."""

import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from eltlab import __version__

if TYPE_CHECKING:
    import torch


def device_name(device: "torch.device") -> str:
    """The accelerator's name, or the processor's and how many threads torch uses."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


@cache
def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout ("+" behind: changed)."""
    top = Path(__file__).parents[2]
    if not (top / ".git").exists():
        return __version__
    describe = ["git", "-C", str(top), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return f"{__version__}-{done.stdout.strip()}" if done.returncode == 0 else __version__


def peak_memory_bytes(device: "torch.device") -> int:
    """The most this process has held: allocated by torch on CUDA, resident on the CPU."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
