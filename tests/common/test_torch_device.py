"""The device and precision that a run chooses, also for a GPU that is not here."""

import os
from pathlib import Path

import pytest
import torch

from eltlab.common import machine_facts, torch_device
from eltlab.common.errors import UserError
from eltlab.common.torch_device import autocast, choose_device, choose_precision, peak_memory_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("accelerator", "there"), [("cpu", "cpu"), ("auto", "cuda"), ("cuda", "cuda")])
def test_auto_is_cuda_if_there_is_one(monkeypatch, accelerator, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(accelerator).type == there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if accelerator == "cuda":
        with pytest.raises(UserError, match=r"trainer\.accelerator=cuda: torch finds no CUDA device here"):
            choose_device(accelerator)
    else:
        assert choose_device(accelerator).type == "cpu"


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_bf16_only_if_the_gpu_computes_it(monkeypatch, native):
    def supports(including_emulation: bool = True) -> bool:
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supports)
    assert choose_precision("auto", CUDA) == ("bf16-mixed" if native else "32-true")
    assert choose_precision("auto", CPU) == "32-true"
    assert choose_precision("bf16-mixed", CPU) == "bf16-mixed"
    assert choose_precision("32-true", CUDA) == "32-true"


def test_products_are_in_bf16_under_autocast_only():
    layer = torch.nn.Linear(2, 2)
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        with autocast(CPU, precision):
            assert layer(torch.ones(1, 2)).dtype == dtype
    assert layer(torch.ones(1, 2)).dtype == torch.float32


def test_the_peak_is_in_bytes_and_at_least_what_the_system_says():
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    highest = int(line.split()[1]) * 1024
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.99 * highest <= peak_memory_bytes(CPU) <= machine


def test_the_processor_is_named_with_its_threads(monkeypatch):
    monkeypatch.setattr(machine_facts, "processor_name", lambda: "Xeon")
    for threads, text in ((1, "Xeon, 1 thread"), (3, "Xeon, 3 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch_device.device_name(CPU) == text
