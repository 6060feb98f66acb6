"""A run that is killed at any moment and resumed ends as if it had never been killed.

The runs are real processes: forked from this one, which has torch imported already, and killed by a
signal that they do not handle. Files change only by renames; a run is killed just before each of them.
"""

import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.run_outcomes import TWENTY_STEPS, assert_same, assert_same_outcome, forked, outcome
from support.tiny_run import find_run

from eltlab import evaluate, fit
from eltlab.common import files

pytestmark = pytest.mark.integration

objectives = pytest.mark.parametrize(
    "objective", ["masked", pytest.param("diffusion", marks=pytest.mark.slow)]
)


def die_at_rename(number: int) -> None:
    """This process will be killed just before its number-th rename from now on."""
    replace, left = os.replace, [number]

    def counted(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    files.os.replace = counted  # type: ignore[assignment]


@objectives
def test_killed_before_every_rename_ends_bit_identical(
    objective: str, undisturbed_run: Callable[[str], Path], tmp_path: Path
) -> None:
    undisturbed = undisturbed_run(objective)
    command = [*TWENTY_STEPS, f"objective={objective}", f"runs_dir={tmp_path}"]

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
    assert_same_outcome(undisturbed, tmp_path)
    assert not [path for path in find_run(tmp_path).rglob(".*.tmp")]


@objectives
def test_killed_at_random_with_evaluation_between(
    objective: str, undisturbed_run: Callable[[str], Path], tmp_path: Path
) -> None:
    undisturbed = undisturbed_run(objective)  # from here on, classifier and codebook come from the cache
    overrides = [*TWENTY_STEPS, f"objective={objective}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert forked(lambda: fit.main([*overrides, f"runs_dir={tmp_path / 'timed'}"])) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    runs = tmp_path / "killed"
    command = [*overrides, f"runs_dir={runs}"]
    delays = random.Random(0)
    kills = 0
    for _ in range(4):
        moment = seconds * delays.uniform(0.1, 0.5)
        if forked(lambda: fit.main(command), kill_after=moment) == -signal.SIGPROF:
            kills += 1
        checkpoints = list(runs.rglob("last.ckpt"))
        if checkpoints:
            run = checkpoints[0].parents[1]
            keys = [f"run={run}", "loops=[2]", "samples=40"]
            assert forked(lambda keys=keys: evaluate.main(keys)) == 0
    assert forked(lambda: fit.main(command)) == 0
    assert kills >= 1
    checkpoint, rows, metrics = outcome(undisturbed)
    disturbed, more_rows, other_metrics = outcome(runs)
    assert_same(checkpoint["state_dict"], disturbed["state_dict"])
    assert_same(checkpoint["optimizer_states"], disturbed["optimizer_states"])
    assert metrics == other_metrics
    for row in rows:
        assert more_rows.count(row) == 1
