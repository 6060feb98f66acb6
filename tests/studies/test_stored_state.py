"""What plan=true says of a study that has started: as running would, and without a trace."""

import pytest
from support.command_line import everything
from support.small_studies import GRID, TUNED, filled, opened, queue_of, written

from eltlab import sweep
from eltlab.common.errors import UserError
from eltlab.studies import trial_queue
from eltlab.studies.stored_state import stored_lines
from eltlab.studies.study_file import SweepKeys

KEYS = SweepKeys()


def test_nothing_is_stored_of_a_study_that_has_not_started(tmp_path):
    assert stored_lines(opened(tmp_path), KEYS) == []
    assert not (tmp_path / "runs").exists()


def test_after_growth_the_plan_says_what_is_done_and_what_is_new(tmp_path):
    queue = filled(opened(tmp_path))
    for _ in range(2):
        queue.finish(queue.claim(), [1.0])
    queue.fail(queue.claim(), "out of memory")
    unchanged = "trials: 2 done, 2 running or waiting, 1 failed, 0 new"
    assert stored_lines(opened(tmp_path), KEYS) == [unchanged]
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    grown = opened(tmp_path, changes={"seeds": [0, 1]})
    before = everything(tmp_path)
    assert stored_lines(grown, KEYS) == ["trials: 4 done, 1 failed, 5 new"]
    assert everything(tmp_path) == before


def test_what_running_refuses_the_plan_refuses(tmp_path, capsys):
    filled(opened(tmp_path))
    here = [str(tmp_path / "small.yaml"), f"runs_dir={tmp_path / 'runs'}"]
    tuned = GRID + TUNED[TUNED.index("tune:") :]
    changes = (f"{GRID}matched: images\n", GRID.replace("ilsd, final", "final"), tuned)
    for text in changes:
        written(tmp_path, text)
        said = []
        for more in ([], ["plan=true"]):
            before = everything(tmp_path)
            with pytest.raises(UserError, match="was started with another file") as refused:
                sweep.main([*here, *more])
            said.append(str(refused.value))
        assert said[0] == said[1] and everything(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_the_plan_of_a_tuned_study_counts_its_tuning_runs(tmp_path):
    study = opened(tmp_path, TUNED)
    queue = filled(study)
    assert stored_lines(study, KEYS) == [
        "tuning runs: 0 done, 6 running or waiting, 0 new",
        "trials: 0 done, 4 new",
    ]
    for _ in range(3):
        queue.finish_tuning(queue.claim(), {4: 0.1})
    for _ in range(3):
        queue.finish_tuning(queue.claim(), {4: 0.1})
    queue.finish(queue.claim(), [1.0])
    grown = opened(tmp_path, TUNED.replace("ilsd, final", "ilsd, final, deep"))
    assert stored_lines(grown, KEYS) == [
        "tuning runs: 6 done, 3 new",
        "trials: 1 done, 3 running or waiting, 2 new",
    ]


def test_an_arm_whose_runs_all_diverged_has_no_new_trials(tmp_path):
    study = opened(tmp_path, TUNED)
    queue = filled(study)
    for loss in (None, None, None, 0.1, 0.2, 0.3):
        queue.finish_tuning(queue.claim(), loss and {4: loss})
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    assert stored_lines(study, KEYS) == ["tuning runs: 6 done, 0 new", "trials: 2 done, 0 new"]


@pytest.mark.parametrize("finished", [False, True])
def test_the_plan_refuses_what_would_run_under_other_code(tmp_path, monkeypatch, finished):
    queue = filled(opened(tmp_path))
    while finished and (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    monkeypatch.setattr(trial_queue, "SOURCE", "0123456789ab")
    if finished:
        assert stored_lines(opened(tmp_path), KEYS) == ["trials: 5 done, 0 new"]
    with pytest.raises(UserError, match="restore that version to continue it"):
        stored_lines(opened(tmp_path, changes={"seeds": [0, 1] if finished else [0]}), KEYS)


def test_the_plan_of_a_search_counts_what_it_will_draw(tmp_path):
    text = "space:\n  loops: [1, 2]\nsampler: random\ntrials: 3\nseeds: [0]\n"
    queue = queue_of(opened(tmp_path, text))
    queue.finish(queue.claim(), [1.0])
    assert stored_lines(opened(tmp_path, text), KEYS) == ["trials: 1 done, 2 new"]
