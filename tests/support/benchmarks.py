"""One call of bench on tiny models, shared by the tests of its rows."""

import pytest

from eltlab import bench
from eltlab.runs.row_files import read_rows
from eltlab.training.timing import interleave
from support.tiny_run import TINY

SMALL = [*TINY, "sampler.steps=2", "repeats=3", "warmup=1", "batches=[1,3]"]


@pytest.fixture(scope="session")
def measured_bench(tmp_path_factory):
    """The output file of one call of bench, its rows, and the timed steps of each model behind them."""
    out, taken = tmp_path_factory.mktemp("bench") / "rows.jsonl", []

    def recording(actions, *rest):
        found = interleave(actions, *rest)
        taken.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eltlab.training.benchmark.interleave", recording)
        bench.main([*SMALL, "loop_counts=[2,4]", f"out={out}"])
    return out, read_rows(out), taken[0][:-1]  # the last action is the matrix product


@pytest.fixture(scope="session")
def bench_rows(measured_bench):
    return measured_bench[:2]
