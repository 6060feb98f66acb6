"""The command lines of evaluate and sample, as typed."""

import shutil
from pathlib import Path

import pytest
from support.command_line import typed_in

from eltlab import evaluate, sample
from eltlab.runs.result_table import load


@pytest.mark.integration
def test_evaluate_and_sample_as_typed(
    trained_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    assert typed_in(evaluate, [f"run={run}", "loops=[1,2,4]", "samples=40"], monkeypatch) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run: {run}"
    schedule = [f"run={run}", "sampler.loops=[2,2,1,1]", "samples=40"]
    assert typed_in(evaluate, schedule, monkeypatch) == 0
    table = load(run)
    rows = table[table["kind"] == "eval"]
    assert list(rows["loops"]) == [1, 2, 4, 1.5]
    assert rows["loop_schedule"].iloc[-1] == "[2, 2, 1, 1]"
    by_loops = rows.set_index("loops")["macs_per_sample"]
    assert by_loops[1.5] == (by_loops[1] + by_loops[2]) / 2

    out = tmp_path / "grid.png"
    typed = [f"run={run}", "loops=2", "count=6", "labels=[3,7]", f"out={out}"]
    assert typed_in(sample, typed, monkeypatch) == 0
    first = out.read_bytes()
    assert first.startswith(b"\x89PNG")
    assert typed_in(sample, typed, monkeypatch) == 0 and out.read_bytes() == first
    assert typed_in(sample, [*typed, "seed=1"], monkeypatch) == 0 and out.read_bytes() != first
