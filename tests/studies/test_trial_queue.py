"""The trials of a study: claimed once, taken over, finished once; what may grow and what may not."""

from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from support.small_studies import GRID, TUNED, filled, opened, queue_of, written

from eltlab.common import package_info
from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE
from eltlab.studies import trial_queue
from eltlab.studies.run_study import fill_queue
from eltlab.studies.storage import open_storage
from eltlab.studies.stored_state import stored_lines
from eltlab.studies.study import grid_trials, load_study
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.trial_queue import SAMPLER_DRAWS, TrialQueue, is_expired, seconds_of
from eltlab.studies.tuning import tuned_arms
from eltlab.studies.worker import Watcher, run_worker
from eltlab.training.validation import LEVELS


def test_trials_are_claimed_once_and_finished_once(tmp_path):
    study = opened(tmp_path)
    one, two = (queue_of(study, name) for name in ("one", "two"))
    one.fill(grid_trials(study))
    two.fill(grid_trials(study))  # adds nothing
    assert one.left() == 5
    claimed = [queue.claim() for queue in (one, two, one, two, one)]
    assert sorted(each.number for each in claimed) == [0, 1, 2, 3, 4]
    assert two.claim() is None and two.left() == 5
    one.finish(claimed[0], [1.5])
    one.finish(claimed[0], [2.5])  # too late
    two.finish(claimed[0], [3.5])  # not its own
    assert one.trials()[0].values == [1.5] and one.left() == 4


def test_a_trial_whose_lease_ran_out_is_taken_over(tmp_path):
    study = opened(tmp_path)
    dead, alive = queue_of(study, "dead"), queue_of(study, "alive")
    dead.fill(grid_trials(study))
    held = dead.claim()
    assert not is_expired(alive.trials()[held.number])
    dead.lease = 0.0
    assert dead.renew(held)
    taken = alive.claim()
    assert (taken.number, taken.params, taken.seeds) == (held.number, held.params, held.seeds)
    # The worker that was presumed dead learns of it, and cannot write.
    assert not dead.renew(held)
    dead.finish(held, [9.0])
    alive.finish(taken, [1.0])
    assert alive.trials()[held.number].values == [1.0]


def test_late_reports_of_a_lost_trial_are_ignored(tmp_path):
    """A worker learns that it lost a trial only when it renews its lease; its fit may end before."""
    study = opened(tmp_path, f"{GRID}pruner: median\n")
    late, other = queue_of(study, "late", lease=0.0), queue_of(study, "other")
    late.fill(grid_trials(study))
    held = late.claim()
    config = study.config(held.params, 0)
    watcher = Watcher(late, held, config)
    other.finish(other.claim(), [1.0])
    watcher.path.parent.mkdir(parents=True)
    lines = [f"1,8,{config.loops},0.1,0.5,0" for _ in range(LEVELS)]
    watcher.path.write_text("\n".join(["step,images,exit,level,loss,gap", *lines, ""]))
    watcher.report()
    [trial] = [trial for trial in other.trials() if trial.state == TrialState.COMPLETE]
    assert trial.number == held.number and trial.intermediate_values == {}


def test_a_released_trial_is_taken_at_once(tmp_path):
    study = opened(tmp_path)
    one, two = (queue_of(study, name) for name in ("one", "two"))
    one.fill(grid_trials(study))
    held = one.claim()
    one.release(held)
    assert two.claim().number == held.number


def test_a_worker_that_died_between_asking_and_drawing_loses_nothing(tmp_path):
    text = "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\nsampler: random\n"
    text += "trials: 2\nseeds: [0]\n"
    study = opened(tmp_path, text)
    queue = queue_of(study)
    queue.optuna.ask()  # RUNNING, with neither lease nor cell
    claimed = queue.claim()
    assert claimed.number == 0 and 1e-4 <= claimed.params["optim.lr"] <= 1e-2
    assert queue.claim().number == 1 and queue.claim() is None


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_draw_does_not_depend_on_a_worker_that_died_before_it(tmp_path, sampler):
    """It is made by the file's sampler from the trial's own number, so no two are equal."""
    text = f"space:\n  optim.lr: {{low: 1.0e-4, high: 1.0e-2}}\nsampler: {sampler}\n"
    text += "trials: 3\nseeds: [0]\n"
    drawn = []
    for died in (0, 3):
        place = tmp_path / str(died)
        place.mkdir()
        study = opened(place, text)
        for _ in range(died):
            queue_of(study).optuna.ask()
        drawn.append([queue_of(study, f"{n}").claim().params["optim.lr"] for n in range(3)])
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 3


def test_cells_that_constraints_forbid_are_not_run(tmp_path):
    text = (
        "space:\n  loops: [1, 2, 4]\n  unique_layers: [1, 2, 4]\nwhere: ['unique_layers * loops == 4']\n"
        "sampler: random\ntrials: 4\nseeds: [0]\n"
    )
    queue = queue_of(opened(tmp_path, text))
    for _ in range(4):
        cell = queue.claim().params
        assert cell["loops"] * cell["unique_layers"] == 4
    assert queue.claim() is None
    forbidden = [t for t in queue.trials() if t.state == TrialState.PRUNED]
    assert forbidden and all("forbidden" in t.user_attrs for t in forbidden)
    queue.retry()
    assert queue.claim() is None


@pytest.mark.integration
@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_sampler_finds_what_constraints_rarely_allow(tmp_path, sampler):
    """One cell in thirty is allowed: even fifty draws sometimes miss it."""
    text = (
        "space:\n  optim.lr: {low: 0.0, high: 0.3}\nwhere: ['optim.lr >= 0.29']\n"
        f"sampler: {sampler}\ntrials: 15\nseeds: [0]\n"
    )
    queue = queue_of(opened(tmp_path, text))
    for _ in range(15):
        claimed = queue.claim()
        assert claimed.params["optim.lr"] >= 0.29
        queue.finish(claimed, [1.0])
    assert queue.left() == 0


def test_a_sampler_that_keeps_to_what_is_forbidden_is_passed_over(tmp_path, monkeypatch):
    text = "space:\n  loops: [1, 2, 4]\nwhere: ['loops >= 2']\nsampler: nsga2\ntrials: 1\nseeds: [0]\n"
    queue = queue_of(opened(tmp_path, text))
    monkeypatch.setattr(optuna.samplers.NSGAIISampler, "sample_independent", lambda *_: 1)
    assert queue.claim().params["loops"] >= 2
    assert sum("forbidden" in trial.user_attrs for trial in queue.trials()) >= SAMPLER_DRAWS


def test_failed_trials_count_and_are_retried_once_on_request(tmp_path):
    sampled = "space:\n  optim.lr: {low: 1.0e-4, high: 1.0e-2}\nsampler: random\ntrials: 2\nseeds: [0]\n"
    for name, text in (("grid", GRID), ("sampler", sampled)):
        (tmp_path / name).mkdir()
        study = opened(tmp_path / name, text)
        queue = queue_of(study)
        if name == "grid":
            queue.fill(grid_trials(study))
        failed = queue.claim()
        queue.fail(failed, "out of memory")
        while (other := queue.claim()) is not None:
            assert other.params != failed.params
            queue.finish(other, [1.0])
        assert queue.left() == 0
        queue.retry()
        queue.retry()  # adds no second retry
        assert queue.left() == 1
        again = queue.claim()
        assert (again.params, again.seeds) == (failed.params, failed.seeds)
        assert queue.claim() is None
        queue.finish(again, [2.0])
        queue.retry()
        assert queue.left() == 0


def test_a_grid_grows(tmp_path):
    filled(opened(tmp_path))
    grown = opened(tmp_path, changes={"seeds": [0, 1]})
    assert len(filled(grown).trials()) == 10
    queue = queue_of(grown)
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    # All had one of the two before: those trials are known, although their names would differ now.
    wider = opened(tmp_path, GRID.replace("[1, 2, 4]", "[1, 2, 4]\n  optim.lr: [0.001, 0.002]"))
    assert len(filled(wider).trials()) == 10 + 5 and queue.left() == 5
    while (claimed := queue.claim()) is not None:
        assert claimed.params["optim.lr"] == 0.002
        queue.finish(claimed, [1.0])
    # Fewer than before contradict nothing that has finished.
    assert filled(opened(tmp_path)).left() == 0


def test_a_queued_trial_that_the_file_no_longer_has_is_refused(tmp_path):
    filled(opened(tmp_path))
    message = (
        r"trial 1 \(loops2-ilsd, seed 0\) is still to run, "
        r"and the space .* no longer contain it; restore"
    )
    with pytest.raises(UserError, match=message):
        filled(opened(tmp_path, GRID.replace("ilsd, final", "final")))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            "objectives: {accuracy: maximize}",
            "objectives was ['heldout_loss: minimize'] and is ['accuracy: maximize']",
        ),
        ("matched: images", "matched was train_flops and is images"),
        ("sampler: random\ntrials: 3", "sampler was grid and is random"),
    ],
)
def test_what_the_numbers_mean_does_not_change(tmp_path, changed, message):
    filled(opened(tmp_path))
    with pytest.raises(UserError, match="started with another file") as refused:
        queue_of(opened(tmp_path, f"{GRID}{changed}\n"))
    assert message in str(refused.value) and "another runs_dir" in str(refused.value)


def test_the_order_of_the_objectives_does_not_change(tmp_path):
    """A trial's values are known by their places alone."""
    first, second = "fd_classifier: minimize", "accuracy: maximize"
    filled(opened(tmp_path, f"{GRID}objectives: {{{first}, {second}}}\n"))
    with pytest.raises(UserError) as refused:
        filled(opened(tmp_path, f"{GRID}objectives: {{{second}, {first}}}\n"))
    message = f"objectives was ['{first}', '{second}'] and is ['{second}', '{first}']"
    assert message in str(refused.value)


def test_a_study_keeps_the_default_objective_that_it_was_started_with(tmp_path):
    """An older version had another default; the loss of another objective cannot become comparable."""
    old = f"{GRID}objectives: {{fd_classifier: minimize}}\n"
    queue = filled(opened(tmp_path, old))
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    assert filled(opened(tmp_path)).study.file.objectives == {"fd_classifier": "minimize"}
    assert stored_lines(opened(tmp_path), SweepKeys()) == ["trials: 5 done, 0 new"]
    with pytest.raises(UserError, match="objectives was"):
        filled(opened(tmp_path, f"{GRID}objectives: {{heldout_loss: minimize}}\n"))


def test_a_study_by_loss_does_not_grow_by_other_losses(tmp_path):
    filled(opened(tmp_path))
    grown = GRID.replace("seeds", "  objective.label_smoothing: [0, 0.1]\nseeds")
    with pytest.raises(UserError, match=r"objectives was .*heldout_loss.* and is .*kd_classifier"):
        filled(opened(tmp_path, grown))


def test_what_a_pruner_watches_does_not_change(tmp_path):
    filled(opened(tmp_path))
    filled(opened(tmp_path, f"{GRID}pruner: median\nwatch: loss@1\n"))  # the first to watch anything
    filled(opened(tmp_path, f"{GRID}pruner: hyperband\nwatch: loss@1\n"))
    filled(opened(tmp_path))
    with pytest.raises(UserError, match="watch was loss@1 and is gap"):
        filled(opened(tmp_path, f"{GRID}pruner: median\nwatch: gap\n"))


@pytest.mark.parametrize("matched", ["train_flops", "images"])
def test_the_resolved_base_does_not_change(tmp_path, matched):
    """The study file is unchanged, but a file of conf/ that its base names is not."""
    text = f"{GRID}matched: {matched}\n"
    filled(opened(tmp_path, text))
    longer = opened(tmp_path, text)
    base = replace(longer.base, budget=replace(longer.base.budget, images=64))
    budget = longer.budget and 2 * longer.budget
    with pytest.raises(UserError, match=f"budget in {matched} was .* and is .*; restore the file and"):
        queue_of(replace(longer, base=base, budget=budget))


# --- the code -------------------------------------------------------------------------------------


def edited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of eltlab as another process would import it after an edit."""
    monkeypatch.setattr(trial_queue, "SOURCE", "0123456789ab")
    monkeypatch.setattr(package_info, "SOURCE", "0123456789ab")


def test_a_study_does_not_continue_under_other_code(tmp_path, monkeypatch):
    study = opened(tmp_path)
    queue = filled(study)
    queue.check_code()
    edited(monkeypatch)
    again = queue_of(study)
    message = rf"small in .*: the study was started by eltlab .* \(source {SOURCE}\), and this is eltlab .* "
    message += r"\(source 0123456789ab\); restore that version .* another runs_dir"
    with pytest.raises(UserError, match=message):
        fill_queue(study, SweepKeys(runs_dir=str(tmp_path / "runs")), 1)
    with pytest.raises(UserError, match=message):
        run_worker(study, SweepKeys(), 1)
    assert again.left() == 5


def test_a_finished_study_is_shown_under_other_code_and_does_not_grow(tmp_path, monkeypatch):
    study = opened(tmp_path)
    queue = filled(study)
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    edited(monkeypatch)
    assert fill_queue(study, SweepKeys(), 1).left() == 0
    larger = opened(tmp_path, changes={"seeds": [0, 1]})
    with pytest.raises(UserError, match="restore that version to continue it"):
        fill_queue(larger, SweepKeys(), 1)
    assert queue.left() == 0


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (TUNED, {"seeds": [0, 1, 2]}),
        (TUNED.replace("ilsd, final", "ilsd, final, deep"), None),
        (TUNED.replace("ilsd, final", "final, ilsd"), None),
    ],
    ids=["a seed", "an arm", "another order"],
)
def test_a_finished_tuned_study_does_not_grow_under_other_code(tmp_path, monkeypatch, text, changes):
    queue = filled(opened(tmp_path, TUNED))
    tune(queue, {"ilsd": [0.3, 0.2, 0.3], "final": [0.5, 0.4, 0.3]})
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    edited(monkeypatch)
    before = len(queue.trials()), queue.optuna.user_attrs
    with pytest.raises(UserError, match="restore that version to continue it"):
        fill_queue(opened(tmp_path, text, changes=changes), SweepKeys(), 1)
    assert fill_queue(opened(tmp_path, TUNED), SweepKeys(), 1).left() == 0
    assert (len(queue.trials()), queue.optuna.user_attrs) == before


@pytest.mark.parametrize("finished", [0, 1])
def test_a_study_of_an_older_version_continues_if_no_trial_is_finished(tmp_path, finished):
    """It stored no code."""
    study = opened(tmp_path)
    storage = open_storage(None, study.folder)
    record = optuna.create_study(storage=storage.optuna, study_name=study.name)
    for _ in range(finished):
        record.tell(record.ask(), 1.0)
    queue = queue_of(study)
    if finished:
        with pytest.raises(UserError, match=r"started by eltlab of an older version \(source unknown\)"):
            queue.check_code()
    else:
        queue.check_code()


@pytest.mark.integration
def test_the_way_out_on_a_database_is_another_database(tmp_path, postgres):
    url = postgres()
    for text in (GRID, f"{GRID}matched: images\n"):
        study = opened(tmp_path, text)
        storage = open_storage(url, study.folder, study=study.name)
        if text == GRID:
            TrialQueue(study, storage, "me", 60.0)
        else:
            with pytest.raises(UserError, match="start another study with another database"):
                TrialQueue(study, storage, "me", 60.0)
        storage.close()


def test_the_message_for_a_changed_base_shows_the_change(tmp_path):
    filled(opened(tmp_path))
    written(tmp_path, GRID)
    changed = (tmp_path / "small.yaml").read_text().replace("budget.images=32", "budget.images=16")
    (tmp_path / "small.yaml").write_text(changed)
    study = load_study(str(tmp_path / "small.yaml"), None, [], str(tmp_path / "runs"), {})
    with pytest.raises(UserError) as refused:
        queue_of(study)
    assert "base was ['budget.images=32'] and is ['budget.images=16']" in str(refused.value)


def test_a_study_in_a_database_says_where_its_runs_are(tmp_path):
    """The same study from another runs_dir: joined while nothing is complete, then refused."""
    url = f"sqlite:///{tmp_path / 'x.db'}"

    def joined(runs: str) -> TrialQueue:
        study = replace(opened(tmp_path), runs_dir=str(tmp_path / runs))
        return TrialQueue(study, open_storage(url, study.folder), "me", 60.0)

    queue = joined("runs")
    queue.fill(grid_trials(queue.study))
    claimed = joined("other").claim()
    queue.study.folder.mkdir(parents=True)  # as its first trial does
    queue.finish(claimed, [1.0])
    assert joined("runs").left() == 4
    message = rf"runs_dir=.*other: no runs of small there, .* with its runs in {tmp_path}/runs/small: give"
    with pytest.raises(UserError, match=message):
        joined("other")
    assert not (tmp_path / "other").exists()


# --- time -----------------------------------------------------------------------------------------


def test_the_time_of_a_trial_is_the_time_that_it_was_worked_on(tmp_path, monkeypatch):
    """Two workers work on it for 40 and 5 s; before, between and after, it waits for an hour."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, time=lambda: 1e9 + clock.now)
    monkeypatch.setattr(trial_queue, "time", clock)
    study = opened(tmp_path, "space:\n  loops: [2]\nseeds: [0]\n")
    one, two = filled(study, "one"), queue_of(study, "two")
    for queue, seconds in ((one, 40.0), (two, 5.0)):
        clock.now += 3600
        claimed = replace(queue.claim(), since=clock.now)
        clock.now += seconds
        assert queue.renew(claimed)
    clock.now += 3600
    taken = replace(one.claim(), since=clock.now)
    clock.now += 1
    one.finish(taken, [1.0])
    assert seconds_of(one.trials()[0]) == 46.0


# --- tuning ---------------------------------------------------------------------------------------


def tune(queue: TrialQueue, losses: dict[str, list[float | None]]) -> list[str]:
    """Finishes tuning trials until others are claimed; returns the arms of the trials in between."""
    finished = []
    while any(losses.values()):
        claimed = queue.claim()
        assert claimed.tuning
        arm = claimed.trial.user_attrs["arm"]
        loss = losses[arm].pop(0)
        queue.finish_tuning(claimed, None if loss is None else {1: 9.0, 4: loss})
        finished.append(arm)
    return finished


def test_the_trials_of_an_arm_follow_when_its_tuning_is_finished(tmp_path):
    study = opened(tmp_path, TUNED)
    queue, other = filled(study), queue_of(study, "other")
    assert queue.left() == 6 + 2 * 2
    held = other.claim()  # of the arm ilsd, which has no choice without it
    assert held.params == {"supervision": "ilsd", "optim.lr": 0.001} and held.seeds == [100]
    tune(queue, {"ilsd": [0.3, 0.3], "final": [0.5, 0.4, None]})
    assert queue.left() == 1 + 4
    trials = [queue.claim() for _ in range(2)]
    assert [(t.params, t.seeds, t.tuning) for t in trials] == [
        ({"supervision": "final", "optim.lr": 0.002}, [seed], False) for seed in (0, 1)
    ]
    assert queue.claim() is None  # ilsd is not tuned yet
    other.finish_tuning(held, {1: 9.0, 4: 0.3})
    first = other.claim()
    assert first.params == {"supervision": "ilsd", "optim.lr": 0.001}  # of equal losses the first
    assert first.tuned_on == (
        "held-out loss on a tenth of the training split, of the last exit, tuning seed 100, "
        "0.25 of the budget; optim.lr=0.001: 0.3, optim.lr=0.002: 0.3, optim.lr=0.004: 0.3"
    )
    config = study.config(first.params, 0, first.number, first.tuned_on)
    assert config.name == "small/ilsd" and config.tuned == '{"optim.lr": 0.001}'
    assert config.tuned_on == first.tuned_on and config.optim.lr == 0.001
    assert other.claim().seeds == [1] and other.claim() is None
    assert len(queue.trials()) == 6 + 4
    record = queue.optuna.user_attrs["tuned"]
    assert record["final"]["tuned"] == {"optim.lr": 0.002} and record["final"]["at_edge"] == []
    losses = ((0.001, 0.5), (0.002, 0.4), (0.004, None))
    assert record["final"]["losses"] == [[{"optim.lr": rate}, loss] for rate, loss in losses]
    assert record["ilsd"]["at_edge"] == ["optim.lr"]


def test_an_arm_whose_runs_all_diverge_has_no_trials(tmp_path):
    queue = filled(opened(tmp_path, TUNED))
    tune(queue, {"ilsd": [None] * 3, "final": [0.1, 0.2, 0.3]})
    assert queue.left() == 2 and [queue.claim().params["supervision"] for _ in range(2)] == ["final"] * 2
    assert queue.claim() is None


def test_an_arm_with_a_failed_tuning_run_waits_for_its_retry(tmp_path):
    """A run that was killed has not diverged: choosing without it would be choosing among fewer."""
    queue = filled(opened(tmp_path, TUNED))
    queue.fail(queue.claim(), "killed by signal 9")
    tune(queue, {"ilsd": [0.3, 0.3], "final": [0.5, 0.4, 0.3]})
    assert queue.left() == 2  # final
    for _ in range(2):
        queue.finish(queue.claim(), [1.0])
    assert queue.left() == 0 and queue.claim() is None
    queue.retry()
    assert queue.left() == 1 + 2
    tune(queue, {"ilsd": [0.2]})
    assert [queue.claim().params["optim.lr"] for _ in range(2)] == [0.001] * 2


def test_a_tuned_study_grows(tmp_path):
    """New seeds train with the values that were chosen; a new arm is tuned first."""
    queue = filled(opened(tmp_path, TUNED))
    tune(queue, {"ilsd": [0.3, 0.2, 0.3], "final": [0.5, 0.4, 0.3]})
    while (claimed := queue.claim()) is not None:
        queue.finish(claimed, [1.0])
    more = filled(opened(tmp_path, TUNED, changes={"seeds": [0, 1, 2]}))
    assert more.left() == 2
    new = [more.claim() for _ in range(2)]
    assert [(t.params["optim.lr"], t.seeds) for t in new] == [(0.002, [2]), (0.004, [2])]
    for claimed in new:
        more.finish(claimed, [1.0])
    wider = filled(opened(tmp_path, TUNED.replace("ilsd, final", "ilsd, final, deep")))
    assert wider.left() == 3 + 2 and wider.claim().params["supervision"] == "deep"


@pytest.mark.parametrize(
    "changed",
    [TUNED[: TUNED.index("tune:")], TUNED.replace("0.002, ", ""), TUNED + "  by: mean\n"],
    ids=["removed", "candidates", "by"],
)
def test_how_a_study_is_tuned_does_not_change(tmp_path, changed):
    filled(opened(tmp_path, TUNED))
    with pytest.raises(UserError, match=r"tune was .* and is .*; restore the file"):
        filled(opened(tmp_path, changed))


def test_a_fill_that_was_killed_chooses_nothing(tmp_path, monkeypatch):
    """Two of three candidates are enqueued when the process dies: the next fill adds the third."""
    study = opened(tmp_path, TUNED.replace("ilsd, final", "final"))
    queue, enqueue = queue_of(study), TrialQueue._enqueue

    def die_at_the_third(self, planned, **more):
        if len(self.trials()) == 2:
            raise KeyboardInterrupt
        enqueue(self, planned, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TrialQueue, "_enqueue", die_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            queue.fill_arms(tuned_arms(study))
    tune(queue, {"final": [0.5, 0.4]})
    assert queue.claim() is None
    queue.fill_arms(tuned_arms(study))
    tune(queue, {"final": [0.3]})
    assert queue.claim().params["optim.lr"] == 0.004
