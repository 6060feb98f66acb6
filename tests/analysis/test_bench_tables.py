"""The tables that bench prints of its rows."""

from support.paths import ROOT

from eltlab.analysis.bench_tables import sample_table, train_table
from eltlab.runs.row_files import read_rows

SHARED = {"unique_layers": 2, "seconds": 0.25, "ratio_to_twin": 0.9, "images_per_second": 1234.5, "mfu": 0.5}
STEP = {
    **SHARED,
    **{"loops": 4, "supervision": "ilsd", "ratio_to_vanilla": 1.02, "batch_size": 32, "repeats": 20},
    **{f"{phase}_seconds": 0.05 for phase in ("forward", "backward", "optimizer", "data")},
    **{"peak_memory_bytes": 3 * 2**30, "memory_training_bytes": 2 * 2**30},
    **{"matmul_flops_per_second": 2e12, "device": "a device", "precision": "32-true"},
}
SAMPLE = {**SHARED, "loops_train": 4, "loops": 1, "batch_size": 3, "steps": 16, "guidance": 1.5}


def test_a_training_step_is_one_line_under_a_title_that_says_how_it_was_timed() -> None:
    title, head, line = train_table([STEP])
    assert title == (
        "a device, 32-true, batch 32, medians of 20; utilisation of 2 TFLOP/s, one large matrix product"
    )
    assert head.split()[:4] == ["training", "step", "seconds", "x"]
    assert line.split()[:4] == ["2", "x", "4", "ilsd"]
    assert "0.90" in line and "1.02" in line and "1,234.5" in line and "50%" in line
    assert line.split()[-4:] == ["3", "GiB", "2", "GiB"]


def test_samples_name_the_trained_and_the_drawn_loops() -> None:
    title, head, line = sample_table([SAMPLE])
    assert title == "16 sampling steps, guidance 1.5"
    assert head.startswith("samples") and line.startswith("2 x 4 at 1 ")
    assert line.split()[5] == "3" and line.split()[-3:] == ["0.90", "1,234.5", "50%"]


def test_every_committed_call_of_bench_makes_its_tables() -> None:
    rows = read_rows(ROOT / "benchmarks" / "rows.jsonl")
    for call in {row["call"] for row in rows}:
        for measure, make in (("train", train_table), ("sample", sample_table)):
            own = [row for row in rows if row["call"] == call and row["measure"] == measure]
            assert not own or len(make(own)) == 2 + len(own)
