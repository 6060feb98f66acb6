"""Studies: what their files say, and that every trial runs exactly once however workers end."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY
from optuna.trial import TrialState

from eltlab import sweep
from eltlab.config import identity
from eltlab.errors import UserError
from eltlab.ledger import Ledger, expired
from eltlab.results import load, read_rows
from eltlab.runs import Run
from eltlab.storage import open_storage
from eltlab.study import arm_name, grid_trials, load_study
from eltlab.worker import deepest_losses, last_lines, measured

SMALL = [*TINY, "trainer.grids=0", "trainer.validations=2", "budget.images=32"]


def written(tmp_path: Path, text: str, name: str = "small.yaml") -> str:
    """A study file; base is that of moments."""
    base = "\n".join(f"  - {override!r}" for override in SMALL)
    path = tmp_path / name
    path.write_text(f"base:\n{base}\nthreads: 1\n{text}")
    return str(path)


GRID = """
space:
  loops: [1, 2, 4]
  supervision: [ilsd, final]
seeds: [0]
"""


def opened(tmp_path: Path, text: str = GRID, preset=None, changes=None, overrides=()):
    runs = str(tmp_path / "runs")
    return load_study(written(tmp_path, text), preset, list(overrides), runs, changes or {})


def ledger_of(study, worker="me", lease=60.0) -> Ledger:
    return Ledger(study, open_storage(None, study.folder), worker, lease)


def swept(tmp_path: Path, text: str = GRID, *arguments: str) -> int:
    """Runs the whole study in processes of its own; how many trials have completed."""
    sweep.main([written(tmp_path, text), f"runs_dir={tmp_path / 'runs'}", *arguments])
    return sum(t.state == TrialState.COMPLETE for t in ledger_of(opened(tmp_path, text)).trials())


# --- the file -------------------------------------------------------------------------------------


def test_a_run_that_is_two_cells_is_one_trial(tmp_path):
    """With one loop every supervision is final."""
    trials = grid_trials(opened(tmp_path))
    assert [arm_name(cell, config) for cell, _, config in trials] == [
        "loops1-final",
        "loops2-ilsd",
        "loops2-final",
        "loops4-ilsd",
        "loops4-final",
    ]
    assert len({identity(config) for _, _, config in trials}) == 5


def test_the_seeds_of_a_grid_follow_one_another(tmp_path):
    seeds = [seed for _, seed, _ in grid_trials(opened(tmp_path, changes={"seeds": [3, 1]}))]
    assert seeds == [3] * 5 + [1] * 5


def test_every_trial_trains_for_the_flops_of_the_twin_unless_told_otherwise(tmp_path):
    from eltlab.compute import budget_flops
    from eltlab.twins import twin

    study = opened(tmp_path)
    flops = {budget_flops(config) for _, _, config in grid_trials(study)}
    step = max(flops) / 4
    assert study.budget == budget_flops(twin(study.config({}, 0)))
    assert all(abs(each - study.budget) <= step / 2 for each in flops)
    images = opened(tmp_path, GRID + "matched: images\n")
    assert {config.budget.images for _, _, config in grid_trials(images)} == {32}


def test_constraints_leave_cells_out(tmp_path):
    text = "space:\n  loops: [1, 2, 3, 4]\nwhere:\n  - loops divides model.depth\n"
    cells = opened(tmp_path, text).cells()
    assert [cell["loops"] for cell in cells] == [1, 2, 4]


def test_an_arm_is_a_label_that_fit_does_not_see(tmp_path):
    text = "space:\n  arm:\n    short: {loops: [2]}\n    long: {loops: [4]}\nseeds: [0]\n"
    study = opened(tmp_path, text)
    assert [config.name for _, _, config in grid_trials(study)] == [
        "small/short-loops2",
        "small/long-loops4",
    ]


def test_a_preset_and_overrides_make_studies_of_their_own(tmp_path):
    text = GRID + "presets:\n  quick:\n    base: ['batch_size=4']\n    seeds: [7]\n"
    quick = opened(tmp_path, text, preset="quick")
    assert quick.name == "small-quick" and quick.file.seeds == [7]
    assert quick.config({}, 7).batch_size == 4
    other = opened(tmp_path, text, overrides=["batch_size=16"])
    assert other.name.startswith("small-") and other.name != quick.name
    assert other.config({}, 0).batch_size == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("space: {loops: [3]}", "loops=3 does not divide"),
        ("space: {loop: [2]}", "unknown key loop=2: did you mean loops?"),
        ("spaces: {loops: [2]}", "unknown key spaces: did you mean space?"),
        ("space: {seed: [2]}", "space.seed: the study sets it"),
        ("sampler: grids", "sampler=grids: choose one of grid"),
        ("sampler: tpe", "sampler=tpe: give trials: N"),
        ("trials: 5", "leave trials out"),
        ("pruner: mean", "pruner=mean: choose one of none"),
        ("matched: flops", "matched=flops: choose one of"),
        ("objectives: {fid: lower}", "objectives.fid=lower: choose one of minimize"),
        ("objectives: {}", "objectives is empty"),
        ("seeds: []", "give different whole numbers"),
        ("seeds: [1, 1]", "give different whole numbers"),
        ("seeds: [a]", "could not be converted"),
        ("hours: -1", "hours=-1.0: must be above 0"),
        ("where: ['loops == 9']\nspace: {loops: [2]}", "leaves no cell"),
        (
            "pruner: median\nobjectives: {fid: minimize, params_total: minimize}",
            "a study of several objectives cannot be pruned",
        ),
        ("space: [", "not YAML"),
        ("- a", "not YAML|not a mapping"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        opened(tmp_path, text)


def test_mistakes_on_the_command_line_are_told(tmp_path):
    file = written(tmp_path, GRID)
    for arguments, said in (
        ([], "give one study"),
        (["loops_vs_dept"], "did you mean loops_vs_depth?"),
        ([file, "preset=quik"], "preset=quik"),
        ([file, "workers=0"], "workers=0: must be above 0"),
        ([file, "budgt.images=3"], "did you mean budget.images?"),
        ([file, "storage=sqlite:///x.db", "workers=2"], "sqlite"),
    ):
        with pytest.raises(UserError, match=said):
            sweep.main([*arguments, f"runs_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


# --- the ledger -----------------------------------------------------------------------------------


def test_trials_are_claimed_once_and_finished_once(tmp_path):
    study = opened(tmp_path)
    one, two = (ledger_of(study, name) for name in ("one", "two"))
    one.fill()
    two.fill()  # fills nothing a second time
    assert one.left() == 5
    claimed = [ledger.claim() for ledger in (one, two, one, two, one)]
    assert sorted(each.number for each in claimed) == [0, 1, 2, 3, 4]
    assert two.claim() is None and two.left() == 5
    one.finish(claimed[0], [1.5])
    one.finish(claimed[0], [2.5])  # too late
    two.finish(claimed[0], [3.5])  # not its own
    assert one.trials()[0].values == [1.5] and one.left() == 4


def test_a_trial_whose_lease_ran_out_is_taken_over(tmp_path):
    study = opened(tmp_path)
    dead, alive = ledger_of(study, "dead", lease=0.2), ledger_of(study, "alive")
    dead.fill()
    held = dead.claim()
    assert not expired(alive.trials()[held.number])
    assert dead.renew(held)
    time.sleep(0.3)
    taken = alive.claim()
    assert (taken.number, taken.cell, taken.seeds) == (held.number, held.cell, held.seeds)
    # The one that was thought dead learns it, and cannot write.
    assert not dead.renew(held)
    dead.finish(held, [9.0])
    alive.finish(taken, [1.0])
    assert alive.trials()[held.number].values == [1.0]


def test_a_released_trial_is_taken_at_once(tmp_path):
    study = opened(tmp_path)
    one, two = (ledger_of(study, name) for name in ("one", "two"))
    one.fill()
    held = one.claim()
    one.release(held)
    assert two.claim().number == held.number


def test_a_worker_that_died_between_asking_and_drawing_loses_nothing(tmp_path):
    text = "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nsampler: random\n"
    text += "trials: 2\nseeds: [0]\n"
    study = opened(tmp_path, text)
    ledger = ledger_of(study)
    ledger.optuna.ask()  # RUNNING, with neither lease nor cell
    claimed = ledger.claim()
    assert claimed.number == 0 and 1e-4 <= claimed.cell["optim.lr"] <= 1e-2
    assert ledger.claim().number == 1 and ledger.claim() is None


def test_what_a_sampler_draws_does_not_depend_on_who_asks(tmp_path):
    text = (
        "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2}\nsampler: random\ntrials: 6\nseeds: [0]\n"
    )
    cells = []
    for workers in (["one"], ["one", "two", "three"]):
        place = tmp_path / str(len(workers))
        place.mkdir()
        study = opened(place, text)
        ledgers = [ledger_of(study, name) for name in workers]
        cells.append([ledgers[n % len(ledgers)].claim().cell["optim.lr"] for n in range(6)])
    assert cells[0] == cells[1] and len(set(cells[0])) == 6


def test_cells_that_constraints_forbid_are_not_run(tmp_path):
    text = (
        "space:\n  loops: [1, 2, 4]\n  unique_layers: [1, 2, 4]\nwhere: ['unique_layers * loops == 4']\n"
        "sampler: random\ntrials: 4\nseeds: [0]\n"
    )
    ledger = ledger_of(opened(tmp_path, text))
    for _ in range(4):
        cell = ledger.claim().cell
        assert cell["loops"] * cell["unique_layers"] == 4
    assert ledger.claim() is None
    forbidden = [t for t in ledger.trials() if t.state == TrialState.FAIL]
    assert forbidden and all("forbids it" in t.user_attrs["error"] for t in forbidden)


def test_a_grid_grows_and_a_meaning_does_not_change(tmp_path):
    ledger_of(opened(tmp_path)).fill()
    grown = ledger_of(opened(tmp_path, changes={"seeds": [0, 1]}))
    grown.fill()
    assert len(grown.trials()) == 10
    wider = GRID.replace("[1, 2, 4]", "[1, 2, 4]\n  optim.lr: [0.001, 0.002]")
    more = ledger_of(opened(tmp_path, wider))
    more.fill()
    assert len(more.trials()) == 10 + 10
    assert opened(tmp_path, GRID + "objectives: {accuracy: maximize}\n").file.objectives == {
        "accuracy": "maximize"
    }
    with pytest.raises(UserError, match="begun with another objectives"):
        ledger_of(opened(tmp_path, GRID + "objectives: {accuracy: maximize}\n"))
    with pytest.raises(UserError, match="begun with another matched"):
        ledger_of(opened(tmp_path, GRID + "matched: images\n"))


# --- whole studies --------------------------------------------------------------------------------


def test_a_study_runs_resumes_and_grows(tmp_path, capsys):
    assert swept(tmp_path, GRID, "workers=2") == 5
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"study: {tmp_path / 'runs' / 'small'}"
    for arm in ("loops1-final", "loops2-ilsd", "loops2-final", "loops4-ilsd", "loops4-final"):
        assert arm in printed.out
    table = load(tmp_path / "runs" / "small")
    rows = table[table["kind"] == "eval"]
    assert len(rows) == 1 + 2 * 2 + 2 * 4  # every arm at every loop count
    assert set(rows["study"]) == {"small"} and sorted(set(rows["trial"])) == [0, 1, 2, 3, 4]
    assert (tmp_path / "runs" / "small" / "table.parquet").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    # Finished: says so, and trains nothing.
    assert swept(tmp_path, GRID) == 5
    assert "is finished" in capsys.readouterr().err
    # Another seed: only that.
    assert swept(tmp_path, GRID, "seeds=[0,1]") == 10
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    assert len(after) == 10 and all(after[path] == time for path, time in before.items())


def test_values_are_those_of_the_rows(tmp_path):
    swept(tmp_path, "space:\n  loops: [2, 4]\nseeds: [0]\n")
    for trial in ledger_of(opened(tmp_path)).trials():
        run = opened(tmp_path).config(trial.user_attrs["cell"], 0)
        [row] = [
            r
            for r in read_rows(Run.of(run).rows)
            if r["kind"] == "eval" and r["loops"] == r["loops_train"]
        ]
        assert trial.values == [row["fd_classifier"]] and measured(run)


def test_a_sampler_averages_over_its_seeds(tmp_path):
    text = (
        "space:\n  loops: [2, 4]\nsampler: random\ntrials: 1\nseeds: [0, 1]\n"
        "objectives: {fd_classifier: minimize, params_total: minimize}\n"
    )
    assert swept(tmp_path, text) == 1
    [trial] = ledger_of(opened(tmp_path, text)).trials()
    study = opened(tmp_path, text)
    values = study.values([study.config(trial.user_attrs["cell"], seed) for seed in (0, 1)])
    assert trial.values == values and values[1] == int(values[1])


def test_a_trial_that_fails_is_told_and_the_study_goes_on(tmp_path, capsys):
    """A learning rate that makes the loss infinite ends one trial of two; retry=true tries it again."""
    text = "space:\n  optim.lr: [0.001, 1.0e+30]\nseeds: [0]\n"
    sensitive = ["optim.warmup_images=0", "optim.clip=0", "budget.images=160"]
    for more, attempts in (((), 1), (("retry=true",), 2)):
        file = written(tmp_path, text)
        sweep.main([file, f"runs_dir={tmp_path / 'runs'}", *sensitive, *more])
        study = load_study(file, None, sensitive, str(tmp_path / "runs"), {})
        states = [trial.state for trial in ledger_of(study).trials()]
        assert states == [TrialState.COMPLETE] + [TrialState.FAIL] * attempts
        failed = ledger_of(study).trials()[-1]
        assert "exit code 1" in failed.user_attrs["error"]
        assert "the loss was not finite" in failed.user_attrs["error"]
        assert "retry=true runs the failed once more" in capsys.readouterr().out


def test_a_trial_that_hangs_is_ended(tmp_path):
    text = "space:\n  loops: [4]\nseeds: [0]\nhours: 0.0008\n"
    endless = "budget.images=80000000"
    file = written(tmp_path, text + "matched: images\n")
    sweep.main([file, f"runs_dir={tmp_path / 'runs'}", endless])
    study = load_study(file, None, [endless], str(tmp_path / "runs"), {})
    [trial] = ledger_of(study).trials()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["error"].startswith("stopped after hours=0.0008")
    [folder] = {path.parent for path in (tmp_path / "runs").rglob("config.yaml")}
    assert not alive(folder)


def test_last_lines_are_kept(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("\n".join(map(str, range(100))))
    assert last_lines(log).splitlines()[-1] == "99" and "\n79\n" not in last_lines(log)
    assert last_lines(tmp_path / "none") == ""


def test_the_losses_that_a_pruner_sees_are_those_of_the_deepest_exit(tmp_path):
    path = tmp_path / "validation.csv"
    path.write_text(
        "step,images,exit,level,loss,gap\n1,8,1,0.1,9,1\n1,8,2,0.1,2,0\n1,8,2,0.5,4,0\n"
        "2,16,2,0.1,1,0\n2,16,2,0.5,"
    )
    assert deepest_losses(path, 2) == [(8, 3.0), (16, 1.0)]
    assert deepest_losses(tmp_path / "none", 2) == []


# --- kills ----------------------------------------------------------------------------------------


def begin(file: str, runs: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "eltlab.sweep", file, f"runs_dir={runs}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_worker_takes_its_trial_with_it_and_another_goes_on(tmp_path):
    """SIGKILL while it trains: the fit dies too, and the next worker resumes it from its checkpoint."""
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=12000", "trainer.checkpoint_seconds=0.2", "lease=1"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    worker = begin(file, runs, *more, "worker=0")
    try:
        study = load_study(file, None, more[:2], str(runs), {})
        Ledger(study, open_storage(None, study.folder), "filler", 60.0).fill()
        wait_for(lambda: list(runs.rglob("last.ckpt")))
    finally:
        worker.kill()
        worker.wait()
    [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
    wait_for(lambda: not alive(folder))
    assert (
        read_rows(folder / "rows.jsonl") == [] and measured(study.config({"loops": 4}, 0)) is False
    )
    second = begin(file, runs, *more)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    [log] = runs.rglob("trial-00000.log")
    assert "resumed at" in log.read_text()
    [trial] = Ledger(study, open_storage(None, study.folder), "me", 60.0).trials()
    assert trial.state == TrialState.COMPLETE


def test_a_stopped_sweep_stops_its_workers_and_releases_their_trials(tmp_path):
    text = "space:\n  loops: [4]\nseeds: [0]\nmatched: images\n"
    more = ["budget.images=4000000", "trainer.checkpoint_seconds=0.2"]
    file, runs = written(tmp_path, text), tmp_path / "runs"
    running = begin(file, runs, *more)
    wait_for(lambda: list(runs.rglob("last.ckpt")))
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    [folder] = {path.parents[1] for path in runs.rglob("last.ckpt")}
    wait_for(lambda: not alive(folder))
    study = load_study(file, None, more, str(runs), {})
    [trial] = Ledger(study, open_storage(None, study.folder), "me", 60.0).trials()
    assert trial.state == TrialState.RUNNING and expired(trial)


def alive(folder: Path) -> bool:
    """Whether a process trains the run."""
    from eltlab.files import locked

    with locked(folder / ".lock", wait=False) as mine:
        return not mine


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
