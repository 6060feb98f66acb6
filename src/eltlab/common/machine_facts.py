"""Facts about this machine, found without torch: processor, GPU and memory."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple


@cache
def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def name_cpu(threads: int | str) -> str:
    """The device that a process with so many threads is, as rows name it."""
    return f"{processor_name()}, {threads} thread{'s' * (str(threads) != '1')}"


def physical_memory() -> int:
    """Bytes of memory in this machine, or the limit of the container or batch job if it is lower."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.is_file() else "max"
    return machine if allowed == "max" else min(machine, int(allowed))


class Machine(NamedTuple):
    """The device a run would train on."""

    kind: str  # cpu | cuda
    name: str | None  # of the processor or the GPU; None if cuda was requested and no GPU is here
    memory: int | None  # bytes; None if unknown
    precision: str  # 32-true | bf16-mixed


def find_machine(accelerator: str, precision: str) -> Machine:
    """The machine that trainer.accelerator and trainer.precision select here."""
    gpu = None if accelerator == "cpu" else find_gpu()
    if gpu is None and accelerator != "cuda":
        threads = os.environ.get("OMP_NUM_THREADS")
        processor = name_cpu(threads) if threads else processor_name()
        found = Machine("cpu", processor, physical_memory(), "32-true")
    else:
        name, memory = gpu or (None, None)
        found = Machine("cuda", name, memory, "bf16-mixed")
    return found if precision == "auto" else found._replace(precision=precision)


def find_gpu() -> tuple[str, int | None] | None:
    """(name, bytes of memory or None if it shares the machine's) of the first GPU visible to CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # As in CUDA, an empty value or -1 hides all GPUs.
    if visible is not None and (not visible.strip() or visible.startswith("-")):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    if visible is not None:
        query.append(f"--id={visible.split(',')[0].strip()}")
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # not installed, or the driver hangs
        return None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None
    name, _, mebibytes = lines[0].rpartition(",")
    size = mebibytes.strip()
    return name.strip(), int(size) * 2**20 if size.isdigit() else None
