"""The verb sweep: it starts, resumes and extends a study, and reports mistakes before anything runs."""

import pytest
from optuna.trial import TrialState
from support.small_studies import GRID, written
from support.sweeps import run_sweep, states

from eltlab import sweep
from eltlab.common.errors import UserError
from eltlab.runs.result_table import load


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one study"),
        (["loops_vs_dept"], "did you mean loops_vs_depth?"),
        (["{file}", "preset=quik"], "preset=quik"),
        (["{file}", "workers=-1"], "workers=-1: must be at least 0"),
        (["{file}", "lease=nan"], "lease=nan: must be a finite number"),
        (["{file}", "budgt.images=3"], "did you mean budget.images?"),
        (["{file}", "storage=sqlite:///x.db", "workers=2"], "sqlite"),
        (["{file}", "trainer=slum"], "trainer=slum: did you mean slurm?"),
        (["{file}", "trainer=slurm"], "trainer=slurm: give the number of jobs, e.g. workers=8"),
        (["{file}", "trainer=slurm", "workers=0"], "give the number of jobs"),
        (["{file}", "trainer=slurm", "workers=2", "storage=sqlite:///a.db"], "set storage=postgresql://"),
    ],
)
def test_a_mistake_on_the_command_line_is_reported_and_starts_nothing(tmp_path, arguments, message):
    file = written(tmp_path, GRID)
    filled = [argument.format(file=file) for argument in arguments]
    with pytest.raises(UserError) as refused:
        sweep.main([*filled, f"runs_dir={tmp_path / 'runs'}"])
    assert message in str(refused.value) and not (tmp_path / "runs").exists()


def test_a_machine_without_slurm_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        sweep.main([written(tmp_path, GRID), f"runs_dir={tmp_path / 'runs'}", "trainer=slurm", "workers=2"])


@pytest.mark.integration
def test_a_study_runs_resumes_and_grows(tmp_path):
    done = run_sweep(tmp_path, GRID, "workers=2")
    assert states(tmp_path) == [TrialState.COMPLETE] * 5
    assert done.stdout.splitlines()[-1] == f"study: {tmp_path / 'runs' / 'small'}"
    for arm in ("loops1-final", "loops2-ilsd", "loops2-final", "loops4-ilsd", "loops4-final"):
        assert arm in done.stdout
    table = load(tmp_path / "runs" / "small")
    rows = table[table["kind"] == "eval"]
    assert len(rows) == 1 + 2 * 2 + 2 * 4  # every arm at every loop count
    assert set(rows["study"]) == {"small"} and sorted(set(rows["trial"])) == [0, 1, 2, 3, 4]
    assert (tmp_path / "runs" / "small" / "table.parquet").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    # Finished: says so, and trains nothing.
    assert "is finished" in run_sweep(tmp_path, GRID).stderr
    assert states(tmp_path) == [TrialState.COMPLETE] * 5
    # A new seed: only its trials run.
    run_sweep(tmp_path, GRID, "seeds=[0,1]")
    assert states(tmp_path) == [TrialState.COMPLETE] * 10
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    assert len(after) == 10 and all(after[path] == time for path, time in before.items())
