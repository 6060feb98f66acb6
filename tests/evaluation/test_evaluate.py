"""Runs are evaluated wherever they and their images are, and rows state what their samples cost."""

import shutil
from pathlib import Path

import pytest
from support.command_line import typed_in
from support.measured_runs import MEASURED, halfway
from support.tiny_run import TINY, find_run

from eltlab import evaluate, fit
from eltlab.analysis.command import read
from eltlab.analysis.comparable_rows import comparable
from eltlab.common.errors import UserError
from eltlab.config.cost import flops
from eltlab.runs.compose_config import compose
from eltlab.runs.load_model import load
from eltlab.runs.result_table import load as load_rows
from eltlab.runs.row_files import read_rows


def test_a_run_keeps_its_name_wherever_its_folder_is(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "a=b" / "mine"
    shutil.copytree(trained_run, moved)
    link = tmp_path / "link"
    link.symlink_to(moved)
    monkeypatch.chdir(moved)
    for seed, folder in enumerate((f"'{moved}'", str(link), "."), start=7):
        assert typed_in(evaluate, [f"run={folder}", "loops=1", f"seed={seed}"], monkeypatch) == 0
    table = comparable(read(str(moved)))
    assert sorted(table["sample_seed"]) == [7, 8, 9]
    assert set(table["run"]) == {f"{trained_run.parent.name}/{trained_run.name}"}


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_a_run_is_evaluated_after_its_images_have_moved(image_folder, tmp_path, in_memory):
    """The same images may be in another place; different images are refused."""
    images = ["data=images", f"data.root={image_folder}", "data.size=8", "data.workers=0"]
    keys = [f"data.in_memory={in_memory}", "objective=diffusion", f"runs_dir={tmp_path / 'runs'}"]
    fit.main([*TINY, *images, *keys, "metrics.samples=10", "trainer.grids=0", "evaluate_loops=[1]"])
    run = find_run(tmp_path / "runs")
    moved = image_folder.rename(tmp_path / "moved")
    evaluate.main([f"run={run}", f"data.root={moved}", "loops=2"])
    assert [row["loops"] for row in read_rows(run / "rows.jsonl")] == [1, 2]
    (moved / "train/a/0.png").unlink()
    with pytest.raises(UserError, match="other images than the run was trained on"):
        evaluate.main([f"run={run}", f"data.root={moved}", "loops=3"])


# --- the loops that are spent ---------------------------------------------------------------------


@pytest.fixture
def copied_run(measured_run, tmp_path) -> Path:
    return Path(shutil.copytree(measured_run, tmp_path / "run"))


def row(run: Path, schedule: str) -> dict:
    [found] = [r for r in read_rows(run / "rows.jsonl") if r.get("loop_schedule") == schedule]
    return found


def test_a_schedule_costs_the_loops_it_spends(copied_run):
    evaluate.main([f"run={copied_run}", "loops=[4to1,[4,4,1,1,1]]"])
    rows = {r["loops"]: r for r in read_rows(copied_run / "rows.jsonl") if r["kind"] == "eval"}
    line, steps = row(copied_run, "4to1"), row(copied_run, "[4, 4, 1, 1, 1]")
    # 4to1 in five steps: 4, 3, 3 (2.5 rounded up), 2, 1.
    assert (line["loops"], steps["loops"]) == (13 / 5, 11 / 5)
    one, more = rows[1]["macs_per_sample"], rows[2]["macs_per_sample"] - rows[1]["macs_per_sample"]
    assert line["macs_per_sample"] == one + more * 8 / 5
    assert steps["macs_per_sample"] == one + more * 6 / 5
    assert line["protocol"] == steps["protocol"] == rows[4]["protocol"]


def test_halting_costs_the_loops_it_spends(copied_run):
    threshold = halfway(load(copied_run))
    evaluate.main([f"run={copied_run}", "loops=4", f"sampler.halting={threshold!r}"])
    halted = row(copied_run, f"4, halting {threshold}")
    full = [r for r in read_rows(copied_run / "rows.jsonl") if r.get("loop_schedule") == "constant"]
    full = {r["loops"]: r for r in full if r["kind"] == "eval"}
    assert 1 < halted["loops"] < 4
    one, more = full[1]["macs_per_sample"], full[2]["macs_per_sample"] - full[1]["macs_per_sample"]
    expected = one + more * (halted["loops"] - 1)
    assert halted["macs_per_sample"] == pytest.approx(expected, rel=1e-12)
    assert halted["protocol"] == full[4]["protocol"] and len(comparable(load_rows(copied_run))) >= 5


def test_the_same_spending_is_measured_once(copied_run, capsys):
    command = [f"run={copied_run}", "loops=3", "sampler.halting=0.123"]
    evaluate.main(command)
    before = read_rows(copied_run / "rows.jsonl")
    capsys.readouterr()
    evaluate.main(command)
    assert "measured before" in capsys.readouterr().err
    assert read_rows(copied_run / "rows.jsonl") == before


def test_training_flops_of_a_row_are_those_of_its_supervision(tmp_path):
    totals = {}
    for supervision in ("final", "ilsd", "deep", "random_depth"):
        runs = tmp_path / supervision
        fit.main([*MEASURED, f"supervision={supervision}", "evaluate_loops=[4]", f"runs_dir={runs}"])
        table = load_rows(runs)
        [totals[supervision]] = table[table["kind"] == "eval"]["train_flops_total"]
    net = flops.network(compose(MEASURED))
    head, passed = 6 * flops.macs_head(net), 6 * flops.macs_per_pass(net, 4)
    assert totals["final"] == 64 * passed
    assert totals["ilsd"] == 64 * (passed + head)
    assert totals["deep"] == 64 * (passed + 3 * head)
    mean = sum(6 * flops.macs_per_pass(net, n) for n in (1, 2, 3, 4)) / 4
    assert totals["random_depth"] == 64 * mean
