"""The rows that a benchmark writes, and the phases, ratios and memory in them."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from support.benchmarks import SMALL

from eltlab import bench
from eltlab.analysis.comparable_rows import comparable
from eltlab.runs.result_table import load
from eltlab.runs.row_files import read_rows
from eltlab.training.timing import PHASES


@pytest.mark.integration
def test_one_row_per_measurement(bench_rows):
    _, found = bench_rows
    train = [row for row in found if row["measure"] == "train"]
    assert [(r["unique_layers"], r["loops"], r["supervision"]) for r in train] == [
        (4, 1, "final"),
        (2, 2, "final"),
        (2, 2, "ilsd"),
        (1, 4, "final"),
        (1, 4, "ilsd"),
    ]
    sample = [row for row in found if row["measure"] == "sample"]
    assert [(r["batch_size"], r["loops_train"], r["loops"]) for r in sample] == [
        (batch, trained, drawn)
        for batch in (1, 3)
        for trained, drawn in ((1, 1), (2, 2), (2, 1), (4, 4), (4, 1))
    ]
    assert len(found) == len(train) + len(sample)
    assert {row["kind"] for row in found} == {"bench"}


@pytest.mark.integration
def test_a_row_says_what_was_measured_and_how(bench_rows):
    for row in bench_rows[1]:
        assert row["repeats"] == 3 and row["warmup"] == 1 and row["device"] and row["precision"]
        assert row["seconds_q25"] <= row["seconds"] <= row["seconds_q75"]
        assert row["images_per_second"] == pytest.approx(row["batch_size"] / row["seconds"])
        assert row["mfu"] == pytest.approx(row["flops_per_second"] / row["matmul_flops_per_second"])
        assert row["call"] == bench_rows[1][0]["call"]
        assert json.loads(json.dumps(row)) == row
        if row["measure"] == "train":
            flops = row["train_flops_per_image"] * row["batch_size"] / row["seconds_q75"]
            most = row["train_flops_per_image"] * row["batch_size"] / row["seconds_q25"]
            assert 0.5 * flops <= row["flops_per_second"] <= 2 * most
        else:
            flops = row["flops_per_sample"] * row["images_per_second"]
            assert row["flops_per_second"] == pytest.approx(flops) and row["steps"] == 2


def test_the_phases_of_a_step_add_up_to_it(measured_bench):
    """In every step; a row holds the medians of the phases and of the steps."""
    train = [row for row in measured_bench[1] if row["measure"] == "train"]
    for row, steps in zip(train, measured_bench[2], strict=True):
        assert len(steps) == row["repeats"]
        for step in steps:
            assert list(step.phases) == list(PHASES) and min(step.phases.values()) > 0
        assert row["seconds"] == pytest.approx(median(sum(s.phases.values()) for s in steps))
        for part in PHASES:
            assert row[f"{part}_seconds"] == pytest.approx(median(s.phases[part] for s in steps))


def test_ratios_are_to_the_twin_and_to_the_vanilla_loop(bench_rows):
    train = [row for row in bench_rows[1] if row["measure"] == "train"]
    assert train[0]["ratio_to_twin"] == 1
    for row in train:
        assert row["ratio_to_twin"] > 0
        assert (row["ratio_to_vanilla"] == 1) == (row["supervision"] == "final")


def test_peak_memory_is_what_the_formula_says(bench_rows):
    for row in bench_rows[1]:
        if row["measure"] == "train":
            assert row["peak_memory_bytes"] == pytest.approx(row["memory_training_bytes"], rel=0.15)


@pytest.mark.integration
def test_a_second_call_appends_its_rows(bench_rows, tmp_path):
    out = tmp_path / "rows.jsonl"
    for _ in range(2):
        bench.main([*SMALL, "loop_counts=[]", "batches=[]", f"out={out}"])
    assert len(read_rows(out)) == 2


@pytest.mark.integration
def test_rows_of_the_bench_are_loaded_and_never_compared_with_measured_samples(
    bench_rows, undisturbed_run: Callable[[str], Path]
):
    table = load(bench_rows[0], undisturbed_run("masked"))
    assert (table["kind"] == "bench").sum() == len(bench_rows[1])
    assert set(comparable(table)["kind"]) == {"eval"}


@pytest.mark.integration
def test_recompute_is_measured_too(tmp_path):
    out = tmp_path / "rows.jsonl"
    large = ["model.width=64", "batch_size=64", "loop_counts=[4]", "batches=[]", f"out={out}"]
    for flag in ("false", "true"):
        bench.main([*SMALL, *large, f"trainer.recompute={flag}", "supervision=final"])
    plain, again = (row for row in read_rows(out) if row["loops"] == 4)
    assert again["peak_memory_bytes"] < 0.7 * plain["peak_memory_bytes"]
    assert again["train_flops_per_image"] > 1.2 * plain["train_flops_per_image"]
    # Recomputation counts as work of the machine, but not as utilisation.
    assert again["mfu"] * 1.2 < again["flops_per_second"] / again["matmul_flops_per_second"]


@pytest.mark.integration
def test_samples_that_halt_are_counted_by_what_they_spent(tmp_path):
    out = tmp_path / "rows.jsonl"
    bench.main([*SMALL, "loop_counts=[4]", "sampler.halting=1e9", f"out={out}"])
    drawn = [row for row in read_rows(out) if row["measure"] == "sample" and row["loops_train"] == 4]
    assert len({row["macs_per_sample"] for row in drawn}) == 1  # one loop, whatever was requested
