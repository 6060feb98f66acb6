"""The device that a run would train on, found without torch."""

import pytest
from support.plans import planned

from eltlab.common import machine_facts
from eltlab.config.cost.memory import training_memory
from eltlab.runs.compose_config import compose


def test_physical_memory_is_plausible():
    assert 2**28 < machine_facts.physical_memory() < 2**50


def test_the_device_that_is_planned_for_decides_the_precision(capsys):
    costs = planned(capsys, "trainer.accelerator=cuda")
    assert costs["memory_training_bytes"] == training_memory(compose([]), "cuda", "bf16-mixed").total
    costs = planned(capsys, "trainer.accelerator=cuda", "trainer.precision=32-true")
    assert costs["memory_training_bytes"] == training_memory(compose([]), "cuda", "32-true").total


@pytest.mark.integration
@pytest.mark.parametrize(
    ("visible", "answer", "found"),
    [
        (None, "NVIDIA H100 80GB HBM3, 81559", ("NVIDIA H100 80GB HBM3", 81559 * 2**20)),
        (None, "NVIDIA GB10, [N/A]", ("NVIDIA GB10", None)),
        ("1", "--id=1, 100", ("--id=1", 100 * 2**20)),
        ("", "NVIDIA H100, 81559", None),
        ("-1", "NVIDIA H100, 81559", None),
        (None, "", None),
    ],
)
def test_the_gpu_is_the_first_that_cuda_may_use(monkeypatch, tmp_path, visible, answer, found):
    """A stub replaces nvidia-smi; it prints the --id that it got if the answer contains one."""
    script = tmp_path / "nvidia-smi"
    words = answer.replace("--id=1", "$3") if "--id" in answer else answer
    script.write_text(f'#!/bin/sh\necho "{words}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if found is not None and visible == "1":
        found = ("--id=1", found[1])
    assert machine_facts.find_gpu() == found
