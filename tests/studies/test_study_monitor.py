"""What a sweep prints while its study runs."""

import re
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from support.small_studies import TUNED, filled, opened, queue_of

from eltlab.common.progress import QUIET_SECONDS
from eltlab.studies import study_monitor
from eltlab.studies.storage import Refused
from eltlab.studies.study_monitor import Monitor, describe_trial, status_line
from eltlab.studies.trial_queue import counted


@pytest.fixture
def clock(monkeypatch):
    """The monitor's clock, which only the test moves."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(study_monitor, "time", clock)
    return clock


def line(queue, workers=1):
    return status_line(queue, counted(queue.trials()), workers)


def test_the_status_counts_the_trials_and_names_the_best(tmp_path):
    queue = filled(opened(tmp_path))
    assert line(queue) == "small: 0 done, 0 running, 5 to come"
    for value in (3.0, 2.5):
        queue.finish(queue.claim(), [value])
    queue.fail(queue.claim(), "out of memory")
    queue.prune(queue.claim())
    queue.claim()
    status = "small: 2 done, 1 running, 0 to come, 1 failed, 1 pruned, best 2.5 (loops2-ilsd), "
    assert line(queue).startswith(status)


def test_a_retried_trial_is_not_counted_twice(tmp_path):
    queue = filled(opened(tmp_path, "space:\n  loops: [2]\nseeds: [0]\n"))
    queue.fail(queue.claim(), "out of memory")
    assert line(queue) == "small: 0 done, 0 running, 0 to come, 1 failed"
    queue.retry()
    assert line(queue) == "small: 0 done, 0 running, 1 to come"


def test_the_time_left_is_that_of_the_trials_to_come_shared_by_the_workers(tmp_path, monkeypatch):
    queue = filled(opened(tmp_path))
    for _ in range(2):
        queue.finish(queue.claim(), [1.0])
    monkeypatch.setattr(study_monitor, "seconds_of", lambda trial: 10.0)
    assert line(queue, workers=1).endswith(", 30 s left")  # three trials are left
    assert line(queue, workers=2).endswith(", 15 s left")
    for _ in range(3):
        queue.claim()
    assert line(queue, workers=0).endswith(", 10 s left")  # all three run elsewhere


def test_tuning_runs_are_counted_apart(tmp_path, monkeypatch):
    queue = filled(opened(tmp_path, TUNED))
    assert line(queue) == "small: 0 done, 0 of 6 tuning runs done, 0 running, 10 to come"
    monkeypatch.setattr(study_monitor, "seconds_of", lambda trial: 10.0)
    queue.finish_tuning(queue.claim(), {1: 0.5, 4: 0.25})
    assert line(queue) == "small: 0 done, 1 of 6 tuning runs done, 0 running, 9 to come, 3.5 min left"
    queue.finish_tuning(queue.claim(), None)
    first, second = (describe_trial(trial) for trial in queue.trials()[:2])
    assert first == "trial 0, ilsd, seed 100, tuning: held-out loss 0.25 (10 s)"
    assert second == "trial 1, ilsd, seed 100, tuning: diverged (10 s)"


def test_several_objectives_have_no_best_trial(tmp_path):
    text = "space:\n  loops: [2]\nseeds: [0]\nobjectives: {fd_classifier: minimize, params_total: minimize}\n"
    queue = filled(opened(tmp_path, text))
    queue.finish(queue.claim(), [1.0, 2.0])
    assert line(queue) == "small: 1 done, 0 running, 0 to come"


def test_each_trial_that_ends_adds_a_line(tmp_path, capsys, clock):
    queue = filled(opened(tmp_path))
    queue.finish(queue.claim(), [9.0])
    other = queue_of(queue.study, "other")
    with Monitor(queue, 2) as monitor:
        other.finish(other.claim(), [1.25])
        clock.now += 0.5
        assert monitor.update() == 1  # at most once a second
        clock.now += 1
        assert monitor.update() == 2
        other.fail(other.claim(), "exit code 1; logs/trial-00002.log:\nstep 9\nerror: not finite")
        for _ in range(2):
            clock.now += 1
            assert monitor.update() == 3
    # The trial that had ended before is not shown; the others are, once each.
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"trial 1, loops2-ilsd, seed 0: 1\.25 \(.*\)", first)
    failed = "exit code 1; logs/trial-00002.log: error: not finite"
    assert second == f"trial 2, loops2-final, seed 0: fail: {failed}"


def test_a_file_gets_the_status_every_half_minute(tmp_path, capsys, clock):
    queue = filled(opened(tmp_path))
    with Monitor(queue, 1) as monitor:
        for _ in range(2 * int(QUIET_SECONDS)):
            clock.now += 1
            monitor.update()
    assert capsys.readouterr().err.splitlines() == ["small: 0 done, 0 running, 5 to come"] * 2


def test_a_storage_that_refuses_is_reported_once(tmp_path, capsys, clock, monkeypatch):
    queue = filled(opened(tmp_path))

    @contextmanager
    def refuse():
        raise Refused("storage=x: the server is down")
        yield

    with Monitor(queue, 1) as monitor:
        with monkeypatch.context() as patch:
            patch.setattr(type(queue), "trials", lambda _: refuse().__enter__())
            for _ in range(3):
                clock.now += 1
                assert monitor.update() == 0
        queue.finish(queue.claim(), [1.0])
        clock.now += 1
        assert monitor.update() == 1
    printed = capsys.readouterr().err.splitlines()
    assert printed[0] == "storage=x: the server is down; trying again" and len(printed) == 2


def test_a_trial_without_a_draw_is_described(tmp_path):
    """Its worker died before it stored the parameters."""
    text = "space:\n  loops: [2]\nsampler: random\ntrials: 1\nseeds: [0]\n"
    queue = queue_of(opened(tmp_path, text))
    queue.optuna.tell(queue.optuna.ask(), state=study_monitor.TrialState.FAIL)
    assert describe_trial(queue.trials()[0]) == "trial 0, ?, seed : fail"


def test_a_trial_that_ends_in_the_last_second_has_its_line(tmp_path, clock, capsys):
    queue = filled(opened(tmp_path, "space:\n  loops: [2]\nseeds: [0]\n"))
    with Monitor(queue, 1) as monitor:
        queue.finish(queue.claim(), [2.0])
        assert monitor.update() == 0  # a second has not passed
    assert capsys.readouterr().err.startswith("trial 0, loops2, seed 0: 2 (")
