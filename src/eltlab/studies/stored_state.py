"""What the storage holds of a study, for plan=true: nothing is created or changed."""

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from eltlab.studies.storage import find_storage
from eltlab.studies.study import Study, grid_trials
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.trial_queue import TrialQueue, counted, identities_of, is_tuning, stored_identities
from eltlab.studies.tuning import tuned_arms, tuning_runs


def stored_lines(study: Study, keys: SweepKeys) -> list[str]:
    """What is done, and what running would add: "trials: 28 done, 14 new". Empty if nothing is stored.

    Raises UserError as running would: if what the numbers mean has changed, or a queued trial has gone.
    """
    storage = find_storage(keys.storage, study.folder, study.name)
    if storage is None:
        return []
    try:
        return describe_queue(TrialQueue(study, storage, "plan", keys.lease, create=False))
    finally:
        storage.close()


def describe_queue(queue: TrialQueue) -> list[str]:
    """One line per kind of trial. Raises UserError if some are to run and started under other code."""
    study, trials = queue.study, counted(queue.trials())
    main = [trial for trial in trials if not is_tuning(trial)]
    if study.file.tune is not None:
        arms = tuned_arms(study)
        tuning = tuning_runs(arms)
        new = len(queue.unstored(tuning, tuning + [trial for arm in arms for trial in arm.main]))
        stored = stored_identities(main)
        known = {(arm.name, t.seed) for arm in arms for t in arm.main if identities_of(t) & stored}
        diverged = {arm.name for arm in queue.arms(queue.trials()) if arm.choice and not arm.choice.chosen}
        to_come = sum(arm.name not in diverged for arm in arms) * len(study.file.seeds) - len(known)
        counts = [("tuning runs", [*filter(is_tuning, trials)], new), ("trials", main, to_come)]
    elif study.file.trials is not None:
        counts = [("trials", main, max(study.file.trials - len(trials), 0))]
    else:
        planned = grid_trials(study)
        counts = [("trials", main, len(queue.unstored(planned, planned)))]
    if any(new for *_, new in counts) or any(not trial.state.is_finished() for trial in trials):
        queue.check_code()
    return [count_trials(*each) for each in counts]


def count_trials(what: str, stored: Iterable[FrozenTrial], new: int) -> str:
    states = [trial.state for trial in stored]
    done = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED)
    unfinished, failed = sum(not state.is_finished() for state in states), states.count(TrialState.FAIL)
    parts = [f"{done} done"]
    parts += [f"{unfinished} running or waiting"] if unfinished else []
    parts += [f"{failed} failed"] if failed else []
    return f"{what}: {', '.join(parts)}, {new} new"
