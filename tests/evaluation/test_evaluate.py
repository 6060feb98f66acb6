"""Runs are evaluated wherever they and their images are, and rows state what their samples cost."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import typed_in
from support.measured_runs import MEASURED, halfway
from support.tiny_run import TINY, find_run

from eltlab import evaluate, fit
from eltlab.analysis.command import read
from eltlab.analysis.comparable_rows import comparable
from eltlab.common.errors import UserError
from eltlab.config.cost import flops
from eltlab.config.cost.bill import sampling_bill
from eltlab.data.build import load_data
from eltlab.evaluation import evaluate as evaluation
from eltlab.evaluation.heldout_loss import LOSSES, loss_columns
from eltlab.runs.compose_config import compose
from eltlab.runs.load_model import load
from eltlab.runs.result_table import load as load_rows
from eltlab.runs.row_files import append_rows, read_rows
from eltlab.runs.run_folder import Run


@pytest.mark.integration
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


@pytest.mark.integration
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


@pytest.mark.integration
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


@pytest.mark.integration
def test_halting_costs_the_loops_it_spends(copied_run):
    threshold = halfway(load(copied_run))
    evaluate.main([f"run={copied_run}", "loops=4", f"sampler.halting={threshold!r}"])
    halted = row(copied_run, f"4, halting {threshold} over 128")  # the mean over a batch decides
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
    evaluate.main([*command, "sampler.batch=7"])
    assert len(read_rows(copied_run / "rows.jsonl")) == len(before) + 1


@pytest.mark.integration
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


# --- several settings in one call -----------------------------------------------------------------


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple]:
    """The arguments of each later call of a function of evaluate.py, which does its work."""
    honest, calls = getattr(evaluation, name), []

    def call(*arguments):
        calls.append(arguments)
        return honest(*arguments)

    monkeypatch.setattr(evaluation, name, call)
    return calls


@pytest.mark.integration
def test_several_values_are_measured_in_one_call(copied_run, monkeypatch, capsys):
    """Every combination with every loop count, with one load of the network and of its losses."""
    loads, losses = counted(monkeypatch, "load_run"), counted(monkeypatch, "loss_columns")
    command = [f"run={copied_run}", "loops=[2,6]", "sampler.guidance=[1,2]", "sampler.steps=[5,3]"]
    before = read_rows(copied_run / "rows.jsonl")
    evaluate.main(command)
    new = read_rows(copied_run / "rows.jsonl")[len(before) :]
    # Two loops with guidance 1 and five steps were measured by fit.
    found = [(row["guidance"], row["steps"], row["loops"]) for row in new]
    assert found == [(1, 5, 6), (1, 3, 2), (1, 3, 6), *product((2,), (5, 3), (2, 6))]
    assert len(loads) == 1 and [exits for _, _, exits in losses] == [[6]]  # that of two loops is read back
    for row in new:
        assert row["nfe"] == row["steps"] * row["guidance"] and row["protocol"] == before[-1]["protocol"]
        assert row["cfg"]["sampler.steps"] == row["steps"]
        config = replace(Run.open(copied_run).config)
        config.sampler.steps, config.sampler.guidance = row["steps"], row["guidance"]
        bill = sampling_bill(config, [{row["loops"]: 1.0}] * row["steps"])
        assert bill.items() <= row.items()
    by_loops = {row["loops"]: [row[name] for name in LOSSES] for row in new}
    assert all([row[name] for name in LOSSES] == by_loops[row["loops"]] for row in new)
    pictures = sorted(path.stem for path in copied_run.glob("samples/*/loops_006*"))
    assert pictures == [
        f"loops_006{end}" for end in ("", "_guidance_2.0", "_guidance_2.0_steps_3", "_steps_3")
    ]
    dynamics = pd.read_csv(copied_run / "dynamics.csv")
    lines = dynamics[dynamics["loops"] == 6].groupby(["guidance", "steps"]).size()
    assert lines.to_dict() == {(1, 5): 30, (1, 3): 18, (2, 5): 30, (2, 3): 18}
    capsys.readouterr()
    evaluate.main(command)
    assert capsys.readouterr().err.count("measured before") == 8
    assert len(losses) == 1 and len(read_rows(copied_run / "rows.jsonl")) == len(before) + len(new)


def test_losses_of_an_earlier_checkpoint_are_not_read_back(copied_run, monkeypatch):
    losses, path = counted(monkeypatch, "loss_columns"), copied_run / "rows.jsonl"
    rows = read_rows(path)
    path.unlink()
    append_rows(path, [row | {"images_seen": 32} if row["kind"] == "eval" else row for row in rows])
    evaluate.main([f"run={copied_run}", "loops=2"])
    assert [exits for _, _, exits in losses] == [[2]]
    same = [row for row in rows if row["kind"] == "eval" and row["loops"] == 2]
    assert read_rows(path)[-1]["heldout_loss"] == pytest.approx(same[0]["heldout_loss"], rel=1e-6)


@pytest.mark.integration
def test_an_interrupted_evaluation_resumes_with_what_is_missing(copied_run, monkeypatch):
    command = [f"run={copied_run}", "loops=[1,3]", "sampler.steps=[2,3]"]
    before, calls = len(read_rows(copied_run / "rows.jsonl")), []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return append_rows(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "append_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(command)
    done = read_rows(copied_run / "rows.jsonl")
    evaluate.main(command)
    rows = read_rows(copied_run / "rows.jsonl")
    assert len(rows) == before + 4 and rows[: len(done)] == done
    found = {(row["loops"], row["steps"]) for row in rows[before:]}
    assert found == {(1, 2), (3, 2), (1, 3), (3, 3)}


@pytest.mark.integration
def test_rows_have_the_loss_of_their_loops_and_schedules_have_none(copied_run, capsys):
    model = load(copied_run)
    data = replace(load_data(model.config), tokenizer=model.tokenizer)
    rows = [row for row in read_rows(copied_run / "rows.jsonl") if row["kind"] == "eval"]
    for row in rows:
        exit = row["loops"]
        assert {name: row[name] for name in LOSSES} == loss_columns(model, data, [exit])[exit]
    assert len({row["heldout_loss"] for row in rows}) == len(rows) == 4
    evaluate.main([f"run={copied_run}", "loops=[4to1]"])
    evaluate.main([f"run={copied_run}", "loops=5"])
    shown = capsys.readouterr().err
    schedule, constant = read_rows(copied_run / "rows.jsonl")[-2:]
    assert [schedule[name] for name in LOSSES] == [None] * 3
    assert f"5 loops: heldout_loss {constant['heldout_loss']:.4f}, " in shown
    assert "loops 4to1: fd_classifier" in shown
