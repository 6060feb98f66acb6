"""What collect keeps of runs: their rows, and the files that figures need."""

import json
from pathlib import Path

import pytest
from support.diagnostic_files import run
from support.made_up_rows import row, table

from eltlab.analysis import collect, dynamics, samples
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs as evaluate writes them, each with one sample grid."""
    for seed, scale in ((0, 1.0), (1, 3.0)):
        folder = tmp_path / "runs" / "elastic" / str(seed)
        dynamics_rows = run(folder, seed, scale)
        text = "".join(
            json.dumps({k: v for k, v in each.items() if k != "folder"}) + "\n" for each in dynamics_rows
        )
        (folder / "rows.jsonl").write_text(text)
        tile = folder / "samples" / "aaaa" / "loops_002.png"
        tile.parent.mkdir(parents=True)
        tile.write_bytes(b"a picture")
    return tmp_path / "runs"


def test_collect_keeps_the_rows_and_the_files_that_figures_need(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "study.jsonl"
    stale = out.with_suffix("") / "gone" / "dynamics.csv"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert collect.collect(load(runs), out, seed=1, diagnostics=True) == 4
    again = load(out)
    same = [name for name in again.columns if name != "folder"]
    assert again[same].equals(load(runs)[same]) and not stale.exists()
    assert dynamics.relative_updates(again).equals(dynamics.relative_updates(load(runs)))
    tiles = [path.parts[-5:] for path in out.with_suffix("").rglob("*.png")]
    assert tiles == [("elastic", "1", "samples", "aaaa", "loops_002.png")]  # of one seed
    with pytest.raises(UserError, match="no samples next to these rows"):
        samples.find_tiles(again)  # pictures show the first seed, but the other seed's were kept


def test_nothing_is_collected_without_rows(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="no rows to collect"):
        collect.collect(load(tmp_path / "runs"), tmp_path / "a.jsonl", None, False)
    with pytest.raises(UserError, match=r"rows are written to a \.jsonl file"):
        collect.collect(table([row("a", 4, 1.0)]), tmp_path / "a.json", None, False)


def test_collect_removes_only_files_that_it_wrote(runs: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="choose a different name"):  # runs.jsonl would own runs/
        collect.collect(load(runs), tmp_path / "runs.jsonl", 0, True)
    out = tmp_path / "study.jsonl"
    collect.collect(load(runs), out, 0, True)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("study*/**/*") if path.is_file()}
    with pytest.raises(UserError, match="already collected"):
        collect.collect(load(out), out, 0, True)
    (tmp_path / "study" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"contains .*thesis\.tex"):
        collect.collect(load(runs), out, 0, True)
    assert all(path.read_bytes() == text for path, text in (before | kept).items())
