"""The table of result rows: its columns, the folders that it is read from, and its files."""

from pathlib import Path

import pytest
from support.made_up_rows import row

from eltlab.runs.result_table import COLUMNS, load
from eltlab.runs.row_files import append_rows

# fmt: off
DOCUMENTED = [
    "kind", "run", "name", "created", "code", "source", "device", "study", "trial",
    "tuned", "tuned_on", "seed", "data", "objective", "supervision", "model", "width", "depth",
    "unique_layers", "loops_train", "loops", "loop_schedule", "steps", "nfe", "guidance",
    "guidance_schedule", "temperature",
    "temperature_range", "confidence_noise", "ema_length", "images_seen", "params_total",
    "params_blocks", "macs_per_pass", "macs_per_sample", "train_flops_total", "protocol",
    "split", "samples", "sample_seed", "heldout_loss", "heldout_loss_se", "train_loss", "heldout_protocol",
    "kd_classifier", "kd_classifier_se", "fd_classifier", "fd_classifier_inf", "fd_ideal",
    "memorised", "accuracy", "fid", "fid_inf", "kid", "precision", "recall", "fvd", "fvd_inf",
    "psnr", "train_seconds", "images_per_second", "peak_memory_bytes",
]
# fmt: on


def test_the_documented_columns_are_present_in_order(tmp_path: Path) -> None:
    assert list(COLUMNS) == DOCUMENTED and len(set(COLUMNS)) == len(COLUMNS)
    rows = [row("elt", 1, 5.0, fid=None, cfg={"optim.lr": 0.1})]
    append_rows(tmp_path / "rows.jsonl", rows)
    table = load(tmp_path)
    assert list(table.columns[: len(DOCUMENTED)]) == DOCUMENTED
    assert table["cfg.optim.lr"].iloc[0] == 0.1 and table["fid"].isna().all()


def test_an_empty_folder_gives_an_empty_table(tmp_path: Path) -> None:
    assert len(load(tmp_path)) == 0 and list(load(tmp_path).columns) == DOCUMENTED


def test_linked_runs_are_in_the_table_once(tmp_path: Path) -> None:
    """Old runs may have been moved to a second disk. A link to a parent does not cause a loop."""
    run = tmp_path / "disk" / "a" / "0123456789"
    append_rows(run / "rows.jsonl", [row("a", 1, 2.0)])
    (run / "up").symlink_to(tmp_path / "disk")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "a").symlink_to(run.parent)
    (runs / "again").symlink_to(run)
    assert load(runs)["folder"].tolist() == [str(runs / "a" / "0123456789")]


def test_a_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_rows(tmp_path / "x" / "rows.jsonl", [row("a", 1, 2.0)])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/x")) == 1
