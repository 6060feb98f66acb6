"""Encode that is killed and started again, and several processes that encode one set."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from support.commands import run, start
from support.encoded_sets import asked, contents, make
from support.rank_runs import processes
from support.shared_data import photographs

from eltlab import encode
from eltlab.data.encoded.manifest import read_manifest

pytestmark = pytest.mark.integration


def killed_at_random(kills: int, out: Path, arguments: list[str], seed: int) -> int:
    """Restarts encode until it is done and kills it this many times while it writes shards.

    Returns how often it was killed before it had written all shards."""
    rng, ended_early = random.Random(seed), 0
    for _ in range(kills):
        before = len(list(out.glob("t*-*.safetensors")))
        process = start("encode", *arguments)
        more = rng.randrange(1, 6)
        while process.poll() is None:
            if len(list(out.glob("t*-*.safetensors"))) >= before + more:
                time.sleep(rng.random() / 100)
                process.kill()
                break
            time.sleep(0.0005)
        ended_early += process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
    done = run("encode", *arguments)
    assert done.returncode == 0, done.stderr
    return ended_early


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.chaos)], ids=["three", "twenty"])
def test_encode_that_is_killed_and_restarted_writes_the_same_set(kills, weights_folder, tmp_path) -> None:
    photo_folder = photographs(tmp_path / "images", 3, 15 * kills, 5 * kills)
    more = ["shard=2", "batch=2"]
    whole = make(photo_folder, weights_folder, tmp_path / "whole", *more)
    out = tmp_path / "killed"
    arguments = asked(photo_folder, weights_folder, out, *more)
    assert killed_at_random(kills, out, arguments, seed=kills) >= kills - 1
    assert contents(out) == contents(tmp_path / "whole")
    assert read_manifest(out).id == whole.id
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left <= {".lock"}


def test_each_process_writes_its_part_of_the_shards(
    photo_folder, weights_folder, latent_set, tmp_path
) -> None:
    out = tmp_path / "set"

    def work() -> None:
        with (tmp_path / os.environ["RANK"]).open("w") as log, redirect_stderr(log):
            encode.main(asked(photo_folder, weights_folder, out))

    assert processes(2, work) == [0, 0]
    # Every second of eleven shards: 20 of 36 training images, and 7 of 12 test images.
    assert "encoded 27 images" in (tmp_path / "0").read_text() + (tmp_path / "1").read_text()
    assert contents(out) == contents(latent_set)


@pytest.mark.slow
def test_torchrun_starts_encode(photo_folder, weights_folder, latent_set, tmp_path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    out = tmp_path / "set"
    command = [*torchrun, "-m", "eltlab.encode", *asked(photo_folder, weights_folder, out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "encoded 27 images" in done.stderr  # by the main process
    assert contents(out) == contents(latent_set)
