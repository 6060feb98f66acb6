"""Every arm of the demo starts, trains and is measured: the commands are taken from its script."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from eltlab import fit
from eltlab.common.package_info import package_folder
from eltlab.runs.result_table import load

SMALL = ["budget.images=64", "batch_size=32", "metrics.samples=40", "sampler.steps=2"]


def arms(script: str, tmp: Path) -> list[list[str]]:
    """The overrides of each fit that a script of sweeps/ starts, recorded by a stand-in for python."""
    shim = tmp / "bin" / "python"
    shim.parent.mkdir()
    record = tmp / "commands"
    record.touch()
    shim.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {shlex.quote(str(record))}\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}", "JOBS": "1"}
    # What follows the arms finds no rows here and fails: only the recorded commands matter.
    subprocess.run(
        ["bash", str(package_folder("sweeps") / script)],
        cwd=tmp,
        env=environment,
        capture_output=True,
    )
    lines = [line.split() for line in record.read_text().splitlines()]
    return [line[2:] for line in lines if line[:2] == ["-m", "eltlab.fit"]]


@pytest.mark.integration
def test_every_arm_of_the_demo_trains(tmp_path: Path) -> None:
    commands = arms("demo.sh", tmp_path)
    assert len(commands) == 3
    for overrides in commands:
        kept = [text for text in overrides if not text.startswith("runs_dir=")]
        fit.main([*kept, *SMALL, f"runs_dir={tmp_path}"])
    rows = load(tmp_path)
    assert set(rows["name"]) == {"elastic", "vanilla", "twin"}
    assert rows["protocol"].nunique() == 1 and rows["fd_classifier"].notna().all()
