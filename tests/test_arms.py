"""Every arm of every study starts, trains and is measured: the commands are read off the scripts."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from eltlab import fit
from eltlab.compose import compose
from eltlab.config import folder
from eltlab.results import load

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
        ["bash", str(folder("sweeps") / script)], cwd=tmp, env=environment, capture_output=True
    )
    lines = [line.split() for line in record.read_text().splitlines()]
    return [line[2:] for line in lines if line[:2] == ["-m", "eltlab.fit"]]


def test_every_arm_of_the_demo_trains(tmp_path: Path) -> None:
    commands = arms("demo.sh", tmp_path)
    assert len(commands) == 3
    for overrides in commands:
        kept = [text for text in overrides if not text.startswith("runs_dir=")]
        fit.main([*kept, *SMALL, f"runs_dir={tmp_path}"])
    rows = load(tmp_path)
    assert set(rows["name"]) == {"elastic", "vanilla", "twin"}
    assert rows["protocol"].nunique() == 1 and rows["fd_classifier"].notna().all()


def test_the_arms_of_the_anytime_study_differ_in_one_thing(tmp_path: Path) -> None:
    commands = arms("anytime.sh", tmp_path)
    assert len(commands) == 18
    configs = [compose(overrides) for overrides in commands]
    assert len({(c.name, c.seed) for c in configs}) == 18
    for config in configs:
        arm = config.name.rpartition("-")[2]
        assert config.model.depth == 8 and config.budget.images == 192_000
        assert config.loops == (1 if arm == "twin" else 4)
        assert config.supervision.name == ("ilsd" if arm == "elastic" else "final")


@pytest.mark.parametrize("objective", ["masked", "diffusion"])
@pytest.mark.parametrize("arm", ["elastic", "vanilla", "twin"])
def test_every_arm_of_the_anytime_study_trains(arm: str, objective: str, tmp_path: Path) -> None:
    commands = arms("anytime.sh", tmp_path)
    [overrides] = [c for c in commands if f"name=anytime/{objective}-{arm}" in c and "seed=0" in c]
    fit.main([*overrides, *SMALL, f"runs_dir={tmp_path}"])
    rows = load(tmp_path)
    evaluated = rows[rows["kind"] == "eval"]
    assert list(evaluated["loops"]) == ([1] if arm == "twin" else [1, 2, 3, 4])
    assert evaluated["fd_classifier"].notna().all()
    assert (rows["kind"] == "tokenizer").sum() == (objective == "masked")
