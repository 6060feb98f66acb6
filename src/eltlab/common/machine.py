"""Facts about the machine and the code that a row records."""

import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple


@cache
def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def physical_memory() -> int:
    """Bytes of memory in this machine, or that a container or a batch job may take of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return machine if allowed == "max" else min(machine, int(allowed))


class Machine(NamedTuple):
    """Where a run would train, as far as can be told without torch."""

    kind: str  # cpu | cuda
    name: str | None  # of the processor or the GPU; None: a GPU that is not here
    memory: int | None  # bytes
    precision: str  # 32-true | bf16-mixed


def find_machine(accelerator: str, precision: str) -> Machine:
    """The machine that trainer.accelerator and trainer.precision choose here."""
    gpu = None if accelerator == "cpu" else find_gpu()
    if gpu is None and accelerator != "cuda":
        threads = os.environ.get("OMP_NUM_THREADS")
        threaded = processor() + (f", {threads} threads" if threads else "")
        found = Machine("cpu", threaded, physical_memory(), "32-true")
    else:
        name, memory = gpu or (None, None)
        found = Machine("cuda", name, memory, "bf16-mixed")
    return found if precision == "auto" else found._replace(precision=precision)


def find_gpu() -> tuple[str, int | None] | None:
    """(name, bytes of memory) of the first NVIDIA device that CUDA may use, asked without torch.

    None for the memory of a device that shares the machine's.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.startswith("-")):
        return None
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if visible is not None:
        query.append(f"--id={visible.split(',')[0].strip()}")
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else []
    if not lines:
        return None
    name, _, mebibytes = lines[0].rpartition(",")
    size = mebibytes.strip()
    return name.strip(), int(size) * 2**20 if size.isdigit() else None
