"""The verb fit: its bill, its help and its command as a user types it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.tiny_run import TINY, tiny

from eltlab import fit
from eltlab.common.disk_cache import cache_dir
from eltlab.config.cost.bill import bill
from eltlab.runs.row_files import read_rows


@pytest.mark.integration
def test_fit_shows_the_bill_first_and_every_row_carries_it(tmp_path, capsys):
    fit.main([*TINY, "evaluate_loops=[2,4]", f"runs_dir={tmp_path}"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("fit: digits-masked-elt_tiny-1x4-ilsd-width16-")
    assert lines[2].split() == ["layers", "x", "loops", *"1x4", *"4x1", *"1x1"]
    assert any(line.startswith("training FLOPs ") for line in lines)
    [file] = tmp_path.rglob("rows.jsonl")
    costs, rows = bill(tiny(), "cpu", "32-true"), read_rows(file)
    run = ("loops", "images", "train_steps", "train_flops_total", "nfe")
    own = [key for key in costs if key not in run]
    sizes = [key for key in own if not key.startswith(("macs_", "flops_"))]
    assert [row["kind"] for row in rows] == ["tokenizer", "eval", "eval"]
    for row in rows:
        assert {key: row[key] for key in sizes} == {key: costs[key] for key in sizes}
    in_rows = costs.keys() - {"images", "train_steps"}
    assert {key: rows[-1][key] for key in in_rows} == {key: costs[key] for key in in_rows}


@pytest.mark.integration
def test_help_needs_no_torch() -> None:
    """--help must be fast, so the slow imports must not happen; the time itself is a benchmark."""
    code = (
        "import sys; sys.argv = ['x', '--help']; import runpy; "
        "runpy.run_module('eltlab.fit', run_name='__main__'); "
        "assert not {'torch', 'lightning', 'pandas', 'sklearn'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m eltlab.fit" in done.stdout


# Measuring its held-out loss would take half a minute; the slow case and smaller models do that.
LEAST = ["budget.images=4", "batch_size=4", "evaluate=false", "trainer.grids=0", "trainer.validations=0"]
MORE = ["budget.images=256", "batch_size=32", "metrics.samples=20", "evaluate_loops=[1,12]"]
MORE += ["trainer.grids=1", "sampler.steps=2"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("images", "small"),
    [(4, LEAST), pytest.param(256, MORE, marks=pytest.mark.slow)],
    ids=["one step", "eight steps"],
)
def test_elt_b_with_twelve_loops_as_typed(images: int, small: list[str], tmp_path: Path) -> None:
    """The README's command at a small budget: the real command, as a user types it, run to the end."""
    command = [sys.executable, "-m", "eltlab.fit", "model=elt_b", "loops=12"]
    done = subprocess.run([*command, *small], cwd=tmp_path, capture_output=True, text=True, check=True)
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"run: runs/digits-masked-elt_b-1x12-ilsd-images{images}-batch_size")
    run = tmp_path / last.removeprefix("run: ")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["eltlab"]["images_seen"] == images
    blocks = {k.split(".")[4] for k in checkpoint["state_dict"] if k.startswith("ema.0.stack.blocks")}
    assert blocks == {"0"} and checkpoint["state_dict"]["ema.0.token.weight"].shape[1] == 768
    assert cache_dir().is_dir()
