"""Runs on encoded sets on several ranks, and runs that are killed while processes read ahead."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoded_sets import make, tokenizer_weights
from support.rank_runs import SMALL, assert_same_run, fitted, processes, stop_at, weights
from support.shared_data import photographs
from support.tiny_run import find_run

from eltlab import evaluate, fit
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.studies.worker import preload

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same photographs as latents, means with log-variances, and as tokens."""
    root = tmp_path_factory.mktemp("sets")
    images, networks = photographs(root / "images"), tokenizer_weights(root / "weights")
    preload()
    return {
        kind: make(images, networks, root / kind, tokenizer=name).root
        for kind, name in (("latents", "sd_vae"), ("tokens", "kmeans"))
    }


def on(root: Path, kind: str) -> list[str]:
    objective = "diffusion" if kind == "latents" else "masked"
    overrides = [f"data={kind}", f"data.root={root}", f"objective={objective}", "data.flip=true"]
    codes = {"latents": 1024, "tokens": 0}[kind]
    return [*overrides, f"data.codebook={codes}", "data.workers=0", "loops=2", "evaluate_loops=[1,2]"]


def pixels(run: Path) -> np.ndarray:
    [grid] = (run / "samples").glob("images_*.png")
    return np.asarray(Image.open(grid)).astype(int)


def rows(run: Path) -> list[dict]:
    """The measured rows without their time."""
    found = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "created"} for row in found]


@pytest.mark.parametrize(("kind", "strategy"), [("latents", "ddp"), ("latents", "fsdp"), ("tokens", "ddp")])
def test_two_ranks_on_an_encoded_set_give_the_run_of_one(
    kind: str, strategy: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    overrides = [*on(sets[kind], kind), "evaluate=true", "metrics.samples=12"]
    one = fitted(tmp_path / "one", 1, *overrides)
    two = fitted(tmp_path / "two", 2, *overrides, f"trainer.strategy={strategy}")
    assert_same_run(one, two)
    # The grid's samples, which every rank decodes with a whole tokenizer; a pixel may round either way.
    assert np.abs(pixels(one) - pixels(two)).max() <= 1
    measured = [rows(two)]
    (two / "rows.jsonl").unlink()
    command = [f"run={two}", "trainer.accelerator=cpu"]
    assert processes(1, lambda: evaluate.main(command)) == [0]
    assert [row["kind"] for row in measured[0]] == ["tokenizer", "eval", "eval"]
    assert rows(two) == measured[0]


def test_a_killed_run_that_reads_ahead_resumes_bit_identically(sets: dict[str, Path], tmp_path: Path) -> None:
    overrides = [*on(sets["latents"], "latents"), "data.in_memory=false", "data.workers=2"]
    whole = fitted(tmp_path / "whole", 1, *overrides)
    stopped = [*SMALL, f"runs_dir={tmp_path / 'stopped'}", *overrides]

    def until(step: int) -> None:
        stop_at(step)
        fit.main([*stopped, "trainer.checkpoint_seconds=0"])

    for step in (3, 4):
        assert processes(1, lambda step=step: until(step)) == [0]
        path = find_run(tmp_path / "stopped") / "checkpoints" / "last.ckpt"
        assert read_checkpoint(path)["eltlab"]["step"] == step
    again = fitted(tmp_path / "stopped", 1, *overrides)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name])
