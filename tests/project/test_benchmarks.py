"""The committed rows of the benchmark have what docs/results.md says of them."""

import pytest
from support.paths import ROOT

from eltlab.runs.row_files import read_rows


def test_the_rows_hold_tiny_and_base_width_at_equal_depth():
    bench_rows = [row for row in read_rows(ROOT / "benchmarks" / "rows.jsonl") if row["kind"] == "bench"]
    train = {(row["width"], row["unique_layers"], row["loops"], row["supervision"]) for row in bench_rows}
    for width in (64, 768):
        for loops in (2, 4, 12):
            assert {(width, 12 // loops, loops, name) for name in ("final", "ilsd")} <= train
        assert (width, 12, 1, "final") in train
    assert {row["depth"] for row in bench_rows} == {12} and all(row["device"] for row in bench_rows)
    # The claims of docs/results.md.
    train = [row for row in bench_rows if row["measure"] == "train"]
    for row in train:
        assert row["peak_memory_bytes"] == pytest.approx(row["memory_training_bytes"], rel=0.15)
        if row["supervision"] == "ilsd":
            assert 0.97 <= round(row["ratio_to_vanilla"], 2) <= 1.05
        elif row["loops"] > 1:
            assert 0.85 <= round(row["ratio_to_twin"], 2) <= 0.99
    peak = {(r["width"], r["loops"], r["supervision"]): r["peak_memory_bytes"] for r in train}
    assert 6.5 < peak[768, 1, "final"] / peak[768, 12, "final"] < 7.5
    one_of_twelve = {64: (0.17, 0.18), 768: (0.10, 0.10)}
    for row in bench_rows:
        if row["measure"] == "sample" and row["loops_train"] > 1:
            low, high = (0.83, 1.01)
            if row["loops"] == 1:
                low, high = one_of_twelve[row["width"]] if row["loops_train"] == 12 else (0, 0.6)
            assert low <= round(row["ratio_to_twin"], 2) <= high
