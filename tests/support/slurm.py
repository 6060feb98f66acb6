"""Jobs on a cluster: their overrides, their logs and stand-ins for SLURM's commands."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

LOCAL = ["trainer=slurm", "trainer.slurm.cluster=local"]
MANY = ["trainer.nodes=4", "trainer.devices=8", "trainer.accelerator=cuda", "batch_size=32"]


def text(path: Path) -> str:
    """The text of a file, empty before the file exists."""
    return path.read_text() if path.is_file() else ""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts stand-ins for SLURM's commands on the path. Takes a name and its shell script."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def command(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    command("srun", "true")
    command("sbatch", "echo Submitted batch job 77")
    return command
