"""Every arm of every study starts, trains and is measured: the commands are read off the scripts."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eltlab import compute, fit
from eltlab.compose import compose
from eltlab.config import Config, folder
from eltlab.results import load

SMALL = ["budget.images=64", "batch_size=32", "metrics.samples=40", "sampler.steps=2"]


def arms(script: str, tmp: Path) -> list[list[str]]:
    """The overrides of each fit that a script of sweeps/ starts, recorded by a stand-in for python.

    What a script computes by `python -` it computes.
    """
    shim = tmp / "bin" / "python"
    shim.parent.mkdir()
    record = tmp / "commands"
    record.touch()
    shim.write_text(
        f'#!/bin/sh\n[ "$1" = - ] && exec {shlex.quote(sys.executable)} "$@"\n'
        f'printf "%s\\n" "$*" >> {shlex.quote(str(record))}\n'
    )
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


# --- the supervision study ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supervision(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The overrides of its arms. The script stops after the digits, which have no rows here."""
    return arms("supervision.sh", tmp_path_factory.mktemp("supervision"))


def train_flops(config: Config) -> float:
    return compute.train_flops(config) * config.budget.images


def test_the_supervision_study_is_at_equal_images_and_at_equal_flops(
    supervision: list[list[str]],
) -> None:
    configs = [compose(overrides) for overrides in supervision]
    assert len(configs) == len({(c.name, c.seed) for c in configs}) == 15
    equal_images = [c for c in configs if not c.name.endswith("-flops")]
    assert {c.budget.images for c in equal_images} == {64_000}
    assert {c.supervision.name for c in equal_images} == {
        "final",
        "ilsd",
        "deep",
        "random_depth",
    }
    final = train_flops(next(c for c in configs if c.supervision.name == "final"))
    others = [c for c in configs if c.name.endswith("-flops") or c.supervision.name == "ilsd"]
    assert {c.supervision.name for c in others} == {"ilsd", "random_depth"}
    assert all(abs(train_flops(c) / final - 1) < 0.03 for c in others)
    assert len({(c.loops, c.unique_layers, c.optim.lr, c.batch_size) for c in configs}) == 1


@pytest.mark.parametrize("arm", ["final", "ilsd", "deep", "random_depth", "random_depth-flops"])
def test_every_arm_of_the_supervision_study_trains(
    arm: str, supervision: list[list[str]], tmp_path: Path
) -> None:
    [overrides] = [
        c for c in supervision if f"name=supervision/digits-{arm}" in c and "seed=0" in c
    ]
    fit.main([*overrides, *SMALL, f"runs_dir={tmp_path}"])
    assert list(load(tmp_path)["loops"]) == [1, 2, 3, 4]
