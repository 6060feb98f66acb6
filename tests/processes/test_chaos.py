"""A study under SIGKILLs at random moments: every trial completed once, as if nothing had happened.

A kill hits a single worker, a single trial, or a whole sweep with all its workers. Between kills the
journal gets a torn line, like that of a process that dies while it writes. `make chaos` kills twenty
times, the other tests three.
"""

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.commands import Command
from support.run_outcomes import assert_same, outcome
from support.small_studies import written
from support.sweeps import start_sweep
from support.waiting import until

from eltlab.runs.result_table import load
from eltlab.runs.run_folder import Run
from eltlab.studies.journal import JournalLock
from eltlab.studies.storage import open_storage
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.trial_queue import TrialQueue, failed

# Each training takes a few seconds and writes a checkpoint every fifth of a second.
STUDY = "space:\n  loops: [2, 4]\n  optim.lr: {rates}\nseeds: [0]\n"
MORE = ["budget.images=1600", "trainer.checkpoint_seconds=0.2"]
KINDS = ("worker", "trial", "sweep")


class Sweep:
    """The sweep command for a study of this many trials, which may be killed and restarted."""

    def __init__(self, folder: Path, trials: int, url: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.url, self.runs, self.mark = url, folder / "runs", folder / "mark"
        rates = [round(1e-3 + 1e-4 * n, 4) for n in range(trials // 2)]
        self.file = written(folder, STUDY.format(rates=rates))
        self.study = load_study(self.file, None, MORE, str(self.runs), {})
        self.started: list[Command] = []

    def start(self) -> None:
        storage = [f"storage={self.url}"] if self.url else []
        # Every process that descends from this command keeps the file open: that marks it.
        with self.mark.open("a"):
            self.started.append(
                start_sweep(self.file, self.runs, *MORE, "workers=3", "lease=2", "retry=true", *storage)
            )

    def running(self) -> bool:
        return bool(self.started) and self.started[-1].poll() is None

    def errors(self) -> str:
        """What all its commands have written to stderr."""
        return "".join(command.output()[1] for command in self.started)

    def processes(self) -> dict[str, list[int]]:
        """The living processes by kind: sweeps, workers and trials, including those of a killed sweep."""
        found: dict[str, list[int]] = {"sweep": [], "worker": [], "trial": []}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                files = {link.name: os.readlink(link) for link in (entry / "fd").iterdir()}
            except OSError:  # it ended meanwhile
                continue
            if str(self.mark) in files.values() and int(entry.name) != os.getpid():
                output = files.get("1", "")  # of a trial its log
                kind = "trial" if "trial-" in output else "worker" if output == os.devnull else "sweep"
                found[kind].append(int(entry.name))
        return found

    def kill(self, kind: str, dice: random.Random) -> bool:
        """Sends SIGKILL to one process of this kind, or to the sweep with all workers; whether any lived."""
        living = self.processes()
        chosen = [*living["sweep"], *living["worker"]] if kind == "sweep" else living[kind]
        if kind != "sweep" and chosen:
            chosen = [dice.choice(chosen)]
        for pid in chosen:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return False
        if kind == "sweep":
            self.started[-1].wait()
        return bool(chosen)

    def tear(self) -> None:
        """Appends half a line to the journal, under its lock."""
        journal = self.study.folder / "journal.log"
        lock = JournalLock(journal)
        lock.acquire()
        with journal.open("ab") as file:
            file.write(b'{"op_code": 6, "worker_id": "gone", "trial_i')
        lock.release()

    def finish(self) -> None:
        for _ in range(5):  # a trial that was killed alone has failed: the command retries it
            if not self.running():
                self.start()
            assert self.started[-1].wait() == 0, self.errors()
            if not failed(self.queue().trials()):
                return
        raise AssertionError(f"trials fail again and again:\n{self.errors()}")

    def queue(self) -> TrialQueue:
        storage = open_storage(self.url, self.study.folder, study=self.study.name)
        return TrialQueue(self.study, storage, "reader", 60.0)


def disturb(sweep: Sweep, kills: int, dice: random.Random) -> Counter:
    """Kills this many times, each kind at least once, and restarts the command; returns the counts."""
    plan = [*KINDS, *dice.choices(KINDS, [5, 2, 2], k=kills)]
    done: Counter = Counter()
    deadline = time.monotonic() + 300 * kills
    for kind in dice.sample(plan[:kills], kills):
        while True:
            assert time.monotonic() < deadline, f"{done}\n{sweep.errors()}"
            if not sweep.running():
                if sweep.started:
                    queue = sweep.queue()
                    assert queue.left() or failed(queue.trials()), f"ended before its kills: {done}"
                sweep.start()
            time.sleep(dice.uniform(0.1, 1.0))
            if sweep.kill(kind, dice):
                break
        done[kind] += 1
        if sweep.url is None and (kind == "sweep" or dice.random() < 0.3):
            sweep.tear()
            done["torn"] += 1
    return done


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Sweep]:
    """The number of kills, and a study that is long enough for them and ran without any."""
    sweep = Sweep(tmp_path_factory.mktemp("undisturbed"), trials=2 * request.param)
    sweep.finish()
    return request.param, sweep


@pytest.mark.parametrize(
    ("undisturbed", "storage"),
    [
        pytest.param(3, "journal", marks=pytest.mark.integration),
        pytest.param(3, "postgres", marks=pytest.mark.slow),
        pytest.param(20, "journal", marks=pytest.mark.chaos),
        pytest.param(20, "postgres", marks=pytest.mark.chaos),
    ],
    indirect=["undisturbed"],
)
def test_a_study_survives_kills(
    storage: str, undisturbed: tuple, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    kills, calm = undisturbed
    url = request.getfixturevalue("postgres")() if storage == "postgres" else None
    sweep = Sweep(tmp_path, 2 * kills, url)
    done = disturb(sweep, kills, random.Random(f"{storage} {kills}"))
    sweep.finish()
    print(f"{storage}: {dict(done)}, {len(sweep.queue().trials())} trials", file=sys.stderr)
    assert sum(done[kind] for kind in KINDS) == kills
    assert storage == "postgres" or done["torn"] > 0
    check_completed_once(sweep)
    check_equal(sweep, calm)
    until(lambda: not any(sweep.processes().values()))


def check_completed_once(sweep: Sweep) -> None:
    trials = sweep.queue().trials()
    states = Counter(trial.state for trial in trials)
    assert set(states) <= {TrialState.COMPLETE, TrialState.FAIL}, states
    complete = [trial.user_attrs["key"] for trial in trials if trial.state == TrialState.COMPLETE]
    assert sorted(complete) == sorted(trial.key for trial in grid_trials(sweep.study))
    rows = load(sweep.study.folder)
    assert not rows.duplicated(["run", "kind", "loops"]).any()


def check_equal(sweep: Sweep, undisturbed: Sweep) -> None:
    """The values of the trials, and weights, rows and metrics of their runs, to the last bit."""
    assert values(sweep) == values(undisturbed)
    for one, other in zip(grid_trials(sweep.study), grid_trials(undisturbed.study), strict=True):
        (first, rows, metrics), (second, other_rows, other_metrics) = (
            outcome(Run.of(trial.config).folder.parent) for trial in (one, other)
        )
        for row in [*rows, *other_rows]:  # a retried trial has a different number
            del row["trial"], row["cfg"]["trial"]
        assert_same(first["state_dict"], second["state_dict"])
        assert rows == other_rows and metrics == other_metrics


def values(sweep: Sweep) -> dict[str, list[float]]:
    trials = sweep.queue().trials()
    return {t.user_attrs["arm"]: t.values for t in trials if t.state == TrialState.COMPLETE}
