"""A run that is killed at any moment and resumed ends as if it had never been killed.

The runs are real processes: forked from this one, which has torch imported already, and killed by a
signal that they do not handle. Files change only by renames; a run is killed just before each of them.
"""

import csv
import json
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard

import eltlab.evaluation.distances
import eltlab.training.callbacks  # noqa: F401
from eltlab import evaluate, fit
from eltlab.common import files
from eltlab.runs.result_table import load

TINY = [
    "model.width=16",
    "model.heads=2",
    "model.mlp_width=32",
    "model.depth=4",
    "model.dropout=0.1",
    "loops=2",
    "batch_size=32",
    "budget.images=640",
    "trainer.checkpoint_seconds=0",
    "trainer.log_every=4",
    "trainer.grids=2",
    "sampler.steps=4",
    "metrics.samples=100",
]
VOLATILE = (
    "created",
    "code",
    "evaluated_code",
    "train_seconds",
    "images_per_second",
    "peak_memory_bytes",
)


def forked(work: Callable[[], None], kill_after: float | None = None) -> int:
    """Runs work in a child process; returns its exit status, negative if a signal killed it.

    kill_after: seconds of CPU time after which the kernel kills the child. Time on the clock would be
    too late for a run that is faster than the one before it, as on a machine that has become idle.
    """
    child = os.fork()
    if child == 0:
        if kill_after is not None:
            signal.setitimer(signal.ITIMER_PROF, kill_after)  # SIGPROF ends it without a handler
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at_rename(number: int) -> None:
    """This process will be killed just before its number-th rename from now on."""
    replace, left = os.replace, [number]

    def counted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = counted  # type: ignore[assignment]


def folder(runs: Path) -> Path:
    [config] = runs.rglob("config.yaml")
    return config.parent


def outcome(runs: Path) -> tuple[dict, list[dict], list[list[str]]]:
    """Checkpoint, rows and metrics of the only run in a folder, without values that depend on time."""
    run = folder(runs)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        for key in VOLATILE:
            row.pop(key)
        row["cfg"].pop("runs_dir")
        row["cfg"].pop(
            "metrics.samples"
        )  # depends on the command that wrote the row first; `samples` does not
    with (run / "metrics.csv").open(newline="") as file:
        metrics = [line[:-1] for line in csv.reader(file)]
    return checkpoint, sorted(rows, key=str), metrics


def assert_same(a: object, b: object) -> None:
    """Asserts that values are equal to the last bit, tensors included."""
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor) and torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict) and a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_same_outcome(one: Path, other: Path) -> None:
    (first, rows, metrics), (second, other_rows, other_metrics) = outcome(one), outcome(other)
    assert_same(first["state_dict"], second["state_dict"])
    assert_same(first["optimizer_states"], second["optimizer_states"])
    assert first["eltlab"]["step"] == second["eltlab"]["step"] == 20
    assert rows == other_rows
    assert metrics == other_metrics


@pytest.fixture(scope="module", params=["masked", "diffusion"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Overrides, runs folder and seconds of CPU time of a run that was not interrupted."""
    runs, warm = tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("warm")
    overrides = [*TINY, f"objective={request.param}"]
    # Once before the time is measured: after that, classifier and codebook come from the cache.
    assert forked(lambda: fit.main([*overrides, f"runs_dir={warm}"])) == 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert forked(lambda: fit.main([*overrides, f"runs_dir={runs}"])) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return overrides, runs, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_killed_before_every_rename_ends_bit_identical(undisturbed: tuple, tmp_path: Path) -> None:
    overrides, runs, _ = undisturbed
    command = [*overrides, f"runs_dir={tmp_path}"]

    def attempt(number: int) -> int:
        def work() -> None:
            die_at_rename(number)
            fit.main(command)

        return forked(work)

    kills = 0
    # Each attempt is killed one rename later than the previous one, so 0, 1, 2, … renames succeed:
    # every kind of file is interrupted at its first write and at later ones.
    for number in range(1, 60):
        if attempt(number) == 0:
            break
        kills += 1
    else:
        pytest.fail("the run never finished")
    assert kills >= 5
    assert_same_outcome(runs, tmp_path)
    assert not [path for path in folder(tmp_path).rglob(".*.tmp")]


def test_killed_at_random_with_evaluation_between(undisturbed: tuple, tmp_path: Path) -> None:
    overrides, runs, seconds = undisturbed
    command = [*overrides, f"runs_dir={tmp_path}"]
    delays = random.Random(0)
    kills = 0
    for _ in range(4):
        moment = seconds * delays.uniform(0.1, 0.5)
        if forked(lambda: fit.main(command), kill_after=moment) == -signal.SIGPROF:
            kills += 1
        checkpoints = list(tmp_path.rglob("last.ckpt"))
        if checkpoints:
            run = checkpoints[0].parents[1]
            keys = [f"run={run}", "loops=[2]", "samples=40"]
            assert forked(lambda keys=keys: evaluate.main(keys)) == 0
    assert forked(lambda: fit.main(command)) == 0
    assert kills >= 1
    checkpoint, rows, metrics = outcome(runs)
    disturbed, more_rows, other_metrics = outcome(tmp_path)
    assert_same(checkpoint["state_dict"], disturbed["state_dict"])
    assert_same(checkpoint["optimizer_states"], disturbed["optimizer_states"])
    assert metrics == other_metrics
    for row in rows:
        assert more_rows.count(row) == 1


def test_same_command_again_says_finished_and_changes_nothing(
    undisturbed: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, runs, _ = undisturbed
    before = {path: path.read_bytes() for path in folder(runs).rglob("*") if path.is_file()}
    fit.main([*overrides, f"runs_dir={runs}"])
    printed = capsys.readouterr()
    assert "finished before, at 640 images" in printed.err
    assert printed.out == f"run: {folder(runs)}\n"
    assert before == {path: path.read_bytes() for path in folder(runs).rglob("*") if path.is_file()}


def test_grids_do_not_disturb_training(undisturbed: tuple, tmp_path: Path) -> None:
    overrides, runs, _ = undisturbed
    quiet = [*overrides, f"runs_dir={tmp_path}", "trainer.grids=0", "evaluate=false"]
    assert forked(lambda: fit.main(quiet)) == 0
    trained = torch.load(folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert_same(trained["state_dict"], outcome(runs)[0]["state_dict"])
    assert not (folder(tmp_path) / "samples").exists()


def test_run_folder_contains_what_the_readme_lists(undisturbed: tuple) -> None:
    _, runs, _ = undisturbed
    run = folder(runs)
    for name in (
        "config.yaml",
        "checkpoints/last.ckpt",
        "rows.jsonl",
        "metrics.csv",
        "dynamics.csv",
    ):
        assert (run / name).is_file(), name
    assert len(list((run / "samples").glob("images_*.png"))) == 2
    keys = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"].keys()
    live = {key.removeprefix("backbone.") for key in keys if key.startswith("backbone.")}
    average = {key.removeprefix("ema.") for key in keys if key.startswith("ema.")}
    assert live == average and len(live) + len(average) == len(keys)


def test_one_row_per_loop_count_and_one_line_of_dynamics_per_loop(undisturbed: tuple) -> None:
    _, runs, _ = undisturbed
    table = load(runs)
    rows = table[table["kind"] == "eval"]
    assert list(rows["loops"]) == [1, 2]
    assert rows["fd_classifier"].notna().all() and rows["protocol"].nunique() == 1
    with (folder(runs) / "dynamics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(d["loops"], d["step"], d["loop"]) for d in lines] == [
        (str(loops), str(step), str(loop))
        for loops in (1, 2)
        for step in range(4)
        for loop in range(1, loops + 1)
    ]
    assert all(float(line["update"]) > 0 for line in lines)


def test_a_second_process_is_refused(undisturbed: tuple) -> None:
    overrides, runs, _ = undisturbed
    from eltlab.common.errors import UserError

    with (
        files.file_lock(folder(runs) / ".lock"),
        pytest.raises(UserError, match="another process is training it"),
    ):
        fit.main([*overrides, f"runs_dir={runs}"])
