"""What each loop does, read from the files next to the rows. And collecting rows to commit."""

import json
from pathlib import Path

import pytest
from tables import arm, row, table, unique

from eltlab.analysis import collect, dynamics, samples
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load

DYNAMICS = "protocol,images_seen,sample_seed,loops,step,loop,update\n"
VALIDATION = "step,images,exit,level,loss,gap\n"


def run(folder: Path, seed: int, scale: float) -> list[dict]:
    """A run of two loops with its files: updates of scale / loop, exit losses of scale / exit."""
    folder.mkdir(parents=True)
    moved = "".join(f"aaaa,9,0,2,{step},{n},{scale / n}\n" for step in (0, 1) for n in (1, 2))
    other = "bbbb,9,0,2,0,1,999\naaaa,9,0,4to1,0,1,999\naaaa,5,0,2,0,1,999\n"
    (folder / "dynamics.csv").write_text(DYNAMICS + moved + other)
    losses = "".join(f"1,8,{n},{level},{scale / n + level},0\n" for n in (1, 2) for level in (0.0, 2.0))
    (folder / "validation.csv").write_text(VALIDATION + losses)
    return arm("elastic", {1: 9.0, 2: 5.0}, trained=2, seed=seed, folder=str(folder), images_seen=9)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    return [*run(tmp_path / "a", 0, 1.0), *run(tmp_path / "b", 1, 3.0)]


def test_updates_are_means_over_seeds_of_the_rows_protocol(rows: list[dict]) -> None:
    found = dynamics.relative_updates(table(rows)).set_index(["loops", "step", "loop"])["update"]
    assert found.to_dict() == {(2, 0, 1): 2.0, (2, 0, 2): 1.0, (2, 1, 1): 2.0, (2, 1, 2): 1.0}


def test_exit_losses_are_means_over_seeds_and_levels(rows: list[dict]) -> None:
    found = dynamics.exit_losses(table(rows)).set_index(["images", "exit"])["loss"]
    assert found.to_dict() == {(8, 1): 3.0, (8, 2): 2.0}


def test_the_figure_has_one_column_per_arm_and_one_line_per_loop(rows: list[dict]) -> None:
    above, below = dynamics.draw(table(rows)).axes
    assert [list(line.get_ydata()) for line in above.lines] == [[2.0, 2.0], [1.0, 1.0]]
    assert [list(line.get_ydata()) for line in below.lines] == [[3.0], [2.0]]
    assert [text.get_text() for text in above.texts] == ["loop 2", "loop 1"]  # by height
    with pytest.raises(UserError, match="arms=elastik: did you mean elastic"):
        dynamics.draw(table(rows), ["elastik"])


def test_missing_run_files_are_reported(rows: list[dict]) -> None:
    with pytest.raises(UserError, match=r"no dynamics\.csv next to these rows"):
        dynamics.draw(table(arm("a", {4: 1.0})))
    twin = unique("twin", 4, 1.0, folder=rows[0]["folder"], images_seen=9)
    with pytest.raises(UserError, match="no arm of these rows loops"):
        dynamics.draw(table(twin))


# --- rows to commit -------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs as evaluate writes them, each with one sample grid."""
    for seed, scale in ((0, 1.0), (1, 3.0)):
        folder = tmp_path / "runs" / "elastic" / str(seed)
        rows = run(folder, seed, scale)
        text = "".join(json.dumps({k: v for k, v in each.items() if k != "folder"}) + "\n" for each in rows)
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


def test_a_damaged_file_is_named(rows: list[dict]) -> None:
    (Path(rows[0]["folder"]) / "dynamics.csv").write_text("")
    with pytest.raises(UserError, match=r"a/dynamics\.csv: damaged"):
        dynamics.draw(table(rows))


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
