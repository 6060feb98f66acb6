"""The verb bench: where its rows go, and the mistakes that it reports before it starts."""

import pytest
from support.benchmarks import SMALL

from eltlab import bench
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load


@pytest.mark.integration
def test_by_default_rows_go_where_tables_find_them(tmp_path):
    bench.main([*SMALL, "loops=1", "batches=[]", f"runs_dir={tmp_path}"])
    assert list(load(tmp_path)["measure"]) == ["train"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("repeats=0", "repeats=0: must be at least 1"),
        ("loop_counts=[3]", "loop_counts=3 does not divide the layers of a pass=8"),
        ("loop_counts=few", "loop_counts=few: give counts of at least 1, e.g. loop_counts="),
        ("sampler.loops=2", "bench samples at the loop counts of loop_counts"),
        ("out=/proc/nope/rows.jsonl", "out=/proc/nope/rows.jsonl: cannot be written"),
        ("out=/tmp", "out=/tmp: cannot be written"),
        ("loop_counts=[0]", "give counts of at least 1"),
        ("batches=[0]", "give counts of at least 1"),
        ("model=elt_g batch_size=4096", "give fewer loop_counts or a smaller batch_size"),
        ("repeat=3", "unknown key repeat=3"),
        ("trainer.devices=2", "trainer.devices=2 trainer.nodes=1: bench times one device"),
    ],
)
def test_mistakes_are_reported(wrong, message, tmp_path):
    with pytest.raises(UserError, match=message):
        bench.main([*wrong.split(), "trainer.accelerator=cpu", f"runs_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
