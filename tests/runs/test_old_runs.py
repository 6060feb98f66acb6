"""Runs made before optim.warmup and ema.lengths, with one that version 0.1.0-6c581b3 trained.

support/old_run was made at that commit by:

    python -m eltlab.fit name=old model.block=pre_norm model.residual_scale=true model.width=16 \
        model.heads=2 model.mlp_width=24 model.depth=2 loops=2 data.codebook=16 batch_size=8 \
        budget.images=64 sampler.steps=4 metrics.samples=20 trainer.accelerator=cpu trainer.grids=0 \
        trainer.validations=0

Its checkpoint is without the optimizer. logits.json holds some of the outputs that the commit computed.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.errors import fails
from support.paths import ROOT
from support.tiny_run import TINY

import eltlab
from eltlab import evaluate, export, fit, sample
from eltlab.config.identity import identity
from eltlab.runs.checkpoints import read_checkpoint
from eltlab.runs.old_runs import LONGEST_WARMUP, WARMING_UP, is_old, translate
from eltlab.runs.row_files import read_rows
from eltlab.runs.run_folder import Run

STORED = ROOT / "tests" / "support" / "old_run" / "debc77bbf7"
# The overrides above in today's keys.
SAME = """name=old model.block=pre_norm model.residual_scale=1 model.width=16 model.heads=2 model.mlp_width=24
    model.depth=2 loops=2 data.codebook=16 batch_size=8 budget.images=64 sampler.steps=4 metrics.samples=20
    trainer.accelerator=cpu trainer.grids=0 trainer.validations=0""".split()  # noqa: SIM905


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the old run, in runs/old/."""
    return shutil.copytree(STORED, tmp_path / "old" / STORED.name)


def test_an_old_run_computes_what_it_computed(old_run: Path) -> None:
    model = eltlab.load(old_run, "cpu")
    ids = (torch.arange(2 * 16) % 17).view(2, 16)
    with torch.no_grad():
        done = model.backbone(ids, labels_B=torch.tensor([3, 10]), exits=(1, 2))
    for exit, values in json.loads((old_run / "logits.json").read_text()).items():
        found = done.exits[int(exit)][:, 0, :4].flatten()
        torch.testing.assert_close(found, torch.tensor(values), atol=2e-5, rtol=0)


def test_its_keys_are_translated(old_run: Path) -> None:
    config = Run.open(old_run).config
    assert config.optim.warmup == LONGEST_WARMUP  # 6,400 of 64 images
    assert config.ema.lengths == [WARMING_UP] and config.ema.length == WARMING_UP
    assert config.model.residual_scale == 1 and config.model.final_norm is False


@pytest.mark.parametrize(
    ("images", "decay", "warmup", "length"),
    [
        (192_000, 0.999, 6400 / 192_000, 0.0905),  # 1,500 steps: the average was still warming up
        (12_800_000, 0.999, 0.0005, 0.01),  # 100,000 steps, and an average of 1,000 of them
        (12_800_000, 0.9999, 0.0005, 0.0905),
        (12_800_000, 0.0, 0.0005, 0.0001),
    ],
)
def test_lengths_are_shares_of_the_run(images: int, decay: float, warmup: float, length: float) -> None:
    plain = {
        "model": {"block": "adaln"},
        "optim": {"lr": 1.0, "warmup_images": 6400},
        "ema": {"decay": decay},
        "budget": {"images": images},
        "batch_size": 128,
    }
    assert is_old(plain)
    new = translate(plain)
    assert new["optim"] == {"lr": 1.0, "warmup": pytest.approx(warmup)}
    assert new["ema"] == {"lengths": [pytest.approx(length, rel=1e-2)]}
    assert not is_old(new) and is_old(plain)


@pytest.mark.integration
def test_an_old_run_is_evaluated_under_its_own_id(old_run: Path) -> None:
    evaluate.main([f"run={old_run}", "loops=1", "seed=3"])
    rows = read_rows(old_run / "rows.jsonl")
    assert {row["run"] for row in rows} == {"old/debc77bbf7"}
    assert rows[-1]["sample_seed"] == 3 and rows[-1]["code"] == "0.1.0-6c581b3"
    assert rows[-1]["cfg"]["ema.length"] == WARMING_UP
    assert identity(Run.open(old_run).config) != "debc77bbf7"
    (old_run / "rows.jsonl").unlink()
    assert Run.open(old_run).id == "old/debc77bbf7"  # then its folder says


def test_it_is_sampled_and_exported(old_run: Path, tmp_path: Path) -> None:
    sample.main([f"run={old_run}", "count=4", f"out={tmp_path / 'grid.png'}"])
    assert (tmp_path / "grid.png").is_file()
    export.main([f"run={old_run}", f"out={tmp_path / 'old.safetensors'}"])
    images = eltlab.load(tmp_path / "old.safetensors", "cpu").sample([3], loops=2)
    assert torch.equal(images, eltlab.load(old_run, "cpu").sample([3], loops=2))


def test_an_old_checkpoint_is_not_resumed(old_run: Path, tmp_path: Path) -> None:
    new = Run.of(fit.compose([*SAME, f"runs_dir={tmp_path / 'elsewhere'}"]))
    new.checkpoint.parent.mkdir(parents=True)
    shutil.copy(old_run / "checkpoints" / "last.ckpt", new.checkpoint)
    message = fails(fit.main, [*SAME, f"runs_dir={tmp_path / 'elsewhere'}", "evaluate=false"])
    assert "written by eltlab 0.1.0-6c581b3" in message and "cannot be resumed" in message


def test_an_old_run_that_is_not_finished_does_not_start_again_in_silence(
    old_run: Path, tmp_path: Path
) -> None:
    """The same command has a new id today, so it would not find the old folder."""
    again = [*SAME, f"runs_dir={tmp_path}", "evaluate=false"]
    path = old_run / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["eltlab"]["step"] = 5
    torch.save(checkpoint, path)
    message = fails(fit.main, again)
    assert str(path) in message and "0.1.0-6c581b3" in message
    Run.of(fit.compose([*again, "seed=1"])).refuse_old_start()  # another run of the same name
    checkpoint["eltlab"]["step"] = 8
    torch.save(checkpoint, path)
    Run.of(fit.compose(again)).refuse_old_start()  # it is finished


def test_an_old_run_is_found_under_the_default_name_of_its_time(old_run: Path, tmp_path: Path) -> None:
    """Old default names did not say which keys differ from their defaults."""
    again = [key for key in SAME if key != "name=old"] + [f"runs_dir={tmp_path}", "evaluate=false"]
    short = "digits-masked-elt_tiny-1x2-ilsd"
    assert str(fit.compose(again).name).startswith(f"{short}-")
    old_run.parent.rename(tmp_path / short)
    path = tmp_path / short / old_run.name / "checkpoints" / "last.ckpt"
    checkpoint = read_checkpoint(path)
    checkpoint["eltlab"]["step"] = 5
    torch.save(checkpoint, path)
    for name, text in {"empty": "", "list": "- a", "torn": "model: {"}.items():
        (tmp_path / short / name).mkdir()
        (tmp_path / short / name / "config.yaml").write_text(text)
    assert str(path) in fails(Run.of(fit.compose(again)).refuse_old_start)
    Run.of(fit.compose([*again, "name=another"])).refuse_old_start()


def test_the_replaced_keys_are_unknown_today() -> None:
    assert "unknown key" in fails(fit.compose, [*TINY, "optim.warmup_images=10"])
    assert "unknown key" in fails(fit.compose, [*TINY, "ema.decay=0.9"])
