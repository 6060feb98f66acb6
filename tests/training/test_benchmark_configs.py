"""The models that a benchmark compares."""

import pytest
from support.benchmarks import SMALL

from eltlab import bench
from eltlab.runs.row_files import read_rows


@pytest.mark.integration
def test_all_models_run_the_same_number_of_layers_per_pass(tmp_path):
    out = tmp_path / "rows.jsonl"
    overrides = ["unique_layers=3", "loops=4", "loop_counts=[4,6]", "batches=[]", f"out={out}"]
    bench.main([*SMALL, *overrides])
    assert {row["depth"] for row in read_rows(out)} == {12}
    assert [row["unique_layers"] for row in read_rows(out)] == [12, 3, 3, 2, 2]
