"""Loops spent unevenly: schedules over the sampling steps, halting, and the rows they leave."""

from pathlib import Path

import pytest
import torch
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from eltlab import evaluate, fit
from eltlab.analysis.comparable_rows import comparable
from eltlab.config.cost import flops
from eltlab.config.sampling_schedules import is_loop_schedule, loop_schedule
from eltlab.generation.anytime_sampler import AnytimeSampler
from eltlab.runs.compose_config import compose
from eltlab.runs.load_model import load
from eltlab.runs.result_table import load as load_rows
from eltlab.runs.row_files import read_rows

SMALL = [*TINY, "batch_size=16", "sampler.steps=5", "metrics.samples=40", "trainer.grids=0"]

# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "steps", "counts"),
    [
        ("4to1", 4, [4, 3, 2, 1]),
        ("1to4", 4, [1, 2, 3, 4]),
        ("4to1", 1, [4]),
        ("4to1", 2, [4, 1]),
        ("2to2", 3, [2, 2, 2]),
        ("1to2", 3, [1, 2, 2]),  # the half is rounded up
        ("12to3", 4, [12, 9, 6, 3]),
    ],
)
def test_a_ramp_goes_from_its_first_to_its_last_count(line, steps, counts):
    assert loop_schedule(line, steps) == counts


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 60))
def test_a_ramp_has_the_nearest_counts_to_a_straight_line(first, last, steps):
    counts = loop_schedule(f"{first}to{last}", steps)
    exact = [first + (last - first) * step / (steps - 1) for step in range(steps)]
    assert (counts[0], counts[-1]) == (first, last)
    assert all(abs(n - x) <= 0.5 + 1e-9 for n, x in zip(counts, exact, strict=True))


@pytest.mark.parametrize("wrong", ["4 to 1", "0to4", "4to", "to4", "4to-1", "four", "04to1", ""])
def test_invalid_ramps_are_refused(wrong):
    assert not is_loop_schedule(wrong, 4)
    with pytest.raises(ValueError, match="4to1"):
        loop_schedule(wrong, 4)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["masked", "diffusion"])
def trained(request, tmp_path_factory) -> Path:
    """The folder of a run that is measured at constant counts."""
    runs = tmp_path_factory.mktemp(f"spending-{request.param}")
    fit.main([*SMALL, f"objective={request.param}", f"runs_dir={runs}"])
    [config] = runs.rglob("config.yaml")
    return config.parent


def row(run: Path, schedule: str) -> dict:
    [found] = [r for r in read_rows(run / "rows.jsonl") if r.get("loop_schedule") == schedule]
    return found


def halfway(model: AnytimeSampler) -> float:
    """A threshold between the second relative update of the first step and what follows."""
    updates = model.sample_batch(torch.arange(16) % 10, 4, seed=0, track=True).updates
    second = sorted(step[1] for step in updates)
    return (second[1] + second[2]) / 2


def test_a_schedule_costs_the_loops_it_spends(trained):
    evaluate.main([f"run={trained}", "loops=[4to1,[4,4,1,1,1]]"])
    rows = {r["loops"]: r for r in read_rows(trained / "rows.jsonl") if r["kind"] == "eval"}
    line, steps = row(trained, "4to1"), row(trained, "[4, 4, 1, 1, 1]")
    # 4to1 in five steps: 4, 3, 3 (2.5 rounded up), 2, 1.
    assert (line["loops"], steps["loops"]) == (13 / 5, 11 / 5)
    one, more = rows[1]["macs_per_sample"], rows[2]["macs_per_sample"] - rows[1]["macs_per_sample"]
    assert line["macs_per_sample"] == one + more * 8 / 5
    assert steps["macs_per_sample"] == one + more * 6 / 5
    assert line["protocol"] == steps["protocol"] == rows[4]["protocol"]


def test_halting_costs_the_loops_it_spends(trained):
    threshold = halfway(load(trained))
    evaluate.main([f"run={trained}", "loops=4", f"sampler.halting={threshold!r}"])
    halted = row(trained, f"4, halting {threshold}")
    full = [r for r in read_rows(trained / "rows.jsonl") if r.get("loop_schedule") == "constant"]
    full = {r["loops"]: r for r in full if r["kind"] == "eval"}
    assert 1 < halted["loops"] < 4
    one, more = full[1]["macs_per_sample"], full[2]["macs_per_sample"] - full[1]["macs_per_sample"]
    expected = one + more * (halted["loops"] - 1)
    assert halted["macs_per_sample"] == pytest.approx(expected, rel=1e-12)
    assert halted["protocol"] == full[4]["protocol"] and len(comparable(load_rows(trained))) >= 5


def test_a_pass_halts_when_its_update_falls_below_the_threshold(trained):
    model = load(trained)
    labels, threshold = torch.arange(16) % 10, halfway(model)
    drawn = model.sample_batch(labels, 4, seed=0, changes={"halting": threshold}, track=True)
    counts = [loops for [loops] in drawn.depths]
    for spent, updates in zip(counts, drawn.updates, strict=True):
        assert len(updates) == spent
        assert all(update >= threshold for update in updates[:-1])
        assert spent == 4 or updates[-1] < threshold
    # A schedule of these counts draws the same images.
    counted = model.sample_batch(labels, counts, seed=0)
    assert torch.equal(counted.images, drawn.images)


@pytest.mark.parametrize(("threshold", "count"), [(1e9, 1), (1e-9, 4)])
def test_a_threshold_out_of_reach_is_a_constant_count(trained, threshold, count):
    model = load(trained)
    halted = model.sample_batch(torch.tensor([3, 7]), 4, seed=0, changes={"halting": threshold})
    constant = model.sample_batch(torch.tensor([3, 7]), count, seed=0)
    assert halted.depths == [{count: 1.0}] * 5 and torch.equal(halted.images, constant.images)


def test_the_same_spending_is_measured_once(trained, capsys):
    command = [f"run={trained}", "loops=3", "sampler.halting=0.123"]
    evaluate.main(command)
    before = read_rows(trained / "rows.jsonl")
    capsys.readouterr()
    evaluate.main(command)
    assert "measured before" in capsys.readouterr().err
    assert read_rows(trained / "rows.jsonl") == before


def test_shares_of_loops_are_of_images_not_of_batches(trained):
    """40 images in batches of 16, 16 and 8."""
    model = load(trained)
    drawn = model.sample_all(torch.arange(40) % 10, "4to1", 0, "test")
    assert drawn.depths == [{n: 1.0} for n in (4, 3, 3, 2, 1)] and len(drawn.images) == 40
    calls = iter([[{1: 1.0}] * 5, [{1: 1.0}] * 5, [{4: 1.0}] * 5])
    real = model.sample_batch

    def counted(*args, **given):
        return real(*args, **given)._replace(depths=next(calls))

    model.sample_batch = counted  # type: ignore[method-assign]
    assert model.sample_all(torch.arange(40) % 10, 4, 0, "test").depths == [{1: 0.8, 4: 0.2}] * 5


def test_training_flops_of_a_row_are_those_of_its_supervision(tmp_path):
    totals = {}
    for supervision in ("final", "ilsd", "deep", "random_depth"):
        runs = tmp_path / supervision
        fit.main([*SMALL, f"supervision={supervision}", "evaluate_loops=[4]", f"runs_dir={runs}"])
        table = load_rows(runs)
        [totals[supervision]] = table[table["kind"] == "eval"]["train_flops_total"]
    net = flops.network(compose(SMALL))
    head, passed = 6 * flops.macs_head(net), 6 * flops.macs_per_pass(net, 4)
    assert totals["final"] == 64 * passed
    assert totals["ilsd"] == 64 * (passed + head)
    assert totals["deep"] == 64 * (passed + 3 * head)
    mean = sum(6 * flops.macs_per_pass(net, n) for n in (1, 2, 3, 4)) / 4
    assert totals["random_depth"] == 64 * mean
