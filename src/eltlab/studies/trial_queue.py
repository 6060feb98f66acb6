"""The queue of a study's trials: who runs which trial.

A worker claims a trial under the study's lock and holds it by a lease that it keeps renewing. The lease of
a worker that dies expires; the next worker takes the same trial over, and its runs resume from their
checkpoints. So each trial is completed exactly once, however many workers die.
"""

import json
import os
import platform
import time
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE, code_version, describe_code
from eltlab.config.cost.flops import budget_flops
from eltlab.config.schema import Config
from eltlab.studies.samplers import draw_params, make_pruner, make_sampler, name_parameters, suggest_enqueued
from eltlab.studies.space import Params
from eltlab.studies.storage import Storage, open_storage
from eltlab.studies.study import PlannedTrial, Study, identifying_overrides
from eltlab.studies.study_file import SweepKeys
from eltlab.studies.tuning import ArmState, TunedArm, can_be_chosen, choose, tuning_runs

# User attributes of each trial of a grid; "cell" holds its parameters. The storage has these names and
# "lease", "error", "retry_of" and "forbidden": do not rename them.
# Tuning trials also have "tuning" (the FLOPs of the run) and, once they are finished, "losses" (by exit; null
# if the run diverged). Trials with values that were chosen so have "tuned_on". The study's "arms" lists for
# each arm its tuning trials, and "tuned" records the choices for readers.
GRID_ATTRIBUTES = ("cell", "seeds", "arm", "key", "choices", "tuning", "tuned_on")
# Draws in a row that the constraints may forbid. After SAMPLER_DRAWS the next ones are random, because not
# every sampler learns what is forbidden. study.check_draws makes sure that MOST_DRAWS are not reached.
SAMPLER_DRAWS, MOST_DRAWS = 50, 2000


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker holds."""

    trial: Trial
    params: Params
    seeds: list[int]
    tuning: bool = False
    tuned_on: str | None = None  # what the values of the tuned keys were chosen on
    seconds_before: float = 0.0  # how long former workers worked on it
    since: float = field(default_factory=time.monotonic)  # when this worker claimed it

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def seconds(self) -> float:
        """How long it was worked on, without the time that it waited for a worker."""
        return self.seconds_before + time.monotonic() - self.since


def open_queue(study: Study, keys: SweepKeys, workers: int) -> "TrialQueue":
    """The queue for this process. Raises UserError, or Refused."""
    storage = open_storage(keys.storage, study.folder, workers, study.name)
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return TrialQueue(study, storage, name, keys.lease)


class TrialQueue:
    """The trials of a study in a storage. Every method may raise Refused.

    worker: its unique name. lease: seconds without a renewal after which any worker may take over a trial.
    create: false for a study that is in the storage, of which nothing must change.
    """

    def __init__(
        self, study: Study, storage: Storage, worker: str, lease: float, create: bool = True
    ) -> None:
        self.study, self.storage, self.worker, self.lease = study, storage, worker, lease
        self._composed: dict[str, Config] = {}  # of arms with a choice
        if not create:
            with storage.refusals():
                self.optuna = optuna.load_study(study_name=study.name, storage=storage.optuna)
                study = self.study = study.with_objectives(stored_objectives(self.optuna))
                refuse_changes(self.optuna, study, storage)
                if "folder" in self.optuna.user_attrs:
                    check_folder(self.optuna, study, storage)
            return
        with storage.exclusive():
            self.optuna = optuna.create_study(
                storage=storage.optuna,
                study_name=study.name,
                directions=list(study.file.objectives.values()),  # type: ignore[arg-type]
                sampler=optuna.samplers.RandomSampler(seed=0),  # _set_sampler replaces it
                pruner=make_pruner(study),
                load_if_exists=True,
            )
            study = self.study = study.with_objectives(stored_objectives(self.optuna))
            check_meaning(self.optuna, study, storage)
            check_folder(self.optuna, study, storage)
            store_code(self.optuna)

    def check_code(self) -> None:
        """Raises UserError if the trials that are left would run under other code than the first ones.

        A finished study may be looked at under any code.
        """
        with self.storage.refusals():
            code, source = self.optuna.user_attrs.get("code", ("of an older version", None))
        if source != SOURCE:
            other = "database" if "://" in self.storage.where else "runs_dir"
            raise UserError(
                f"{self.study.name} in {self.storage.where}: the study was started by "
                f"{describe_code(code, source)}, and this is {describe_code()}; restore that version "
                f"to continue it, or start another study with another {other}"
            )

    def trials(self) -> list[FrozenTrial]:
        with self.storage.refusals():
            return self.optuna.get_trials(deepcopy=False)

    def left(self) -> int:
        """How many trials are not finished, started or not."""
        trials, wanted = self.trials(), self.study.file.trials
        unfinished = sum(not trial.state.is_finished() for trial in trials)
        unfinished += sum(self._to_come(arm, trials) for arm in self.arms(trials))
        return unfinished + (0 if wanted is None else max(wanted - len(counted(trials)), 0))

    # --- filling ----------------------------------------------------------------------------------

    def fill(self, planned: list[PlannedTrial]) -> None:
        """Enqueues the trials of a grid that are not stored yet.

        Raises UserError if a stored trial is still to run and the grid no longer contains it.
        """
        with self.storage.exclusive():
            new = self.unstored(planned, planned)
            if new:  # refused before the study grows
                self.check_code()
            for each in new:
                self._enqueue(each)

    def unstored(self, planned: list[PlannedTrial], grid: list[PlannedTrial]) -> list[PlannedTrial]:
        """Those of the planned trials that are not stored yet. Raises UserError if a stored trial is still to
        run and is not in the grid."""
        wanted, trials = set().union(*map(identities_of, grid)), self.trials()
        for trial in trials:
            if not trial.state.is_finished() and not stored_identities([trial]) & wanted:
                facts = trial.user_attrs
                what = f"trial {trial.number} ({facts['arm']}, seed {facts['seeds'][0]}) is still to run"
                what += ", and the space or the seeds no longer contain it"
                raise contradiction(self.study, self.storage, what)
        stored = stored_identities(trials)
        return [each for each in planned if not identities_of(each) & stored]

    def _enqueue(self, planned: PlannedTrial, **more: Any) -> None:
        space = {**self.study.file.space, **self.study.tuned_keys}
        named = name_parameters(self.optuna, space, planned.params)
        attributes = {
            "cell": planned.params,
            "seeds": [planned.seed],
            "arm": self.study.arm(planned.params, planned.config),
            "key": planned.key,
            "choices": {name: choices for name, (_, choices) in named.items()},
            **more,
        }
        self.optuna.enqueue_trial({name: value for name, (value, _) in named.items()}, user_attrs=attributes)

    def retry(self) -> None:
        """Enqueues every trial that failed and was not retried yet."""
        with self.storage.exclusive():
            again = failed(self.trials())
            if again:
                self.check_code()
            for trial in again:
                # A grid's parameters are known; a sampler's are drawn again, with the same result.
                keys = GRID_ATTRIBUTES if self.study.file.sampler == "grid" else ()
                kept = {key: trial.user_attrs[key] for key in keys if key in trial.user_attrs}
                self.optuna.enqueue_trial(trial.params, user_attrs={**kept, "retry_of": trial.number})

    # --- arms whose values are chosen first (tuning.py) ---------------------------------------------

    def fill_arms(self, arms: list[TunedArm]) -> None:
        """Enqueues the tuning trials that are not stored yet, and the trials of arms that have a choice.

        Raises UserError as `fill` does.
        """
        with self.storage.exclusive():
            tuning = tuning_runs(arms)
            new = self.unstored(tuning, tuning + [trial for arm in arms for trial in arm.main])
            if new or self._arms_changed(arms) or self._has_choices():  # refused before the study grows
                self.check_code()
            for each in new:
                self._enqueue(each, tuning=budget_flops(each.config))
            # Last: no worker chooses among the tuning trials of a fill that was killed.
            if self._arms_changed(arms):
                self.optuna.set_user_attr("arms", self._arms_record(arms))
            self._enqueue_chosen()

    def _arms_record(self, arms: list[TunedArm]) -> list[dict[str, Any]]:
        """The arms as they are stored, with the numbers of their tuning trials, which all are stored."""
        numbers = {name: t.number for t in reversed(self.trials()) for name in stored_identities([t])}
        return [
            {
                "arm": arm.name,
                "cell": arm.params,
                "tuning": [numbers[max(identities_of(t) & numbers.keys())] for t in arm.tuning],
            }
            for arm in arms
        ]

    def _arms_changed(self, arms: list[TunedArm]) -> bool:
        return self._arms_record(arms) != self.optuna.user_attrs.get("arms")

    def _has_choices(self) -> bool:
        """Whether there are trials of arms with a choice to enqueue."""
        trials = self.trials()
        return any(self._unstored_main(arm, trials) for arm in self.arms(trials))

    def arms(self, trials: list[FrozenTrial]) -> list[ArmState]:
        """The arms of a study with `tune`, in the order of the last fill."""
        if self.study.file.tune is None:
            return []
        with self.storage.refusals():
            stored = self.optuna.user_attrs.get("arms", [])
        retries = {trial.user_attrs.get("retry_of"): trial for trial in trials}

        def attempts(number: int) -> list[FrozenTrial]:
            again = retries.get(number)
            return [trials[number], *(attempts(again.number) if again else [])]

        found = []
        for arm in stored:
            chains = [attempts(number) for number in arm["tuning"]]
            latest = [chain[-1] for chain in chains]
            choice = choose(self.study.file.tune, latest)
            found.append(ArmState(arm["arm"], arm["cell"], latest, choice, [t for c in chains for t in c]))
        return found

    def _enqueue_chosen(self) -> None:
        """Enqueues the trials of the arms whose tuning is finished. The caller holds the lock."""
        tune, trials = self.study.file.tune, self.trials()
        if tune is None:
            return
        arms = [arm for arm in self.arms(trials) if arm.choice is not None]
        record = {arm.name: arm.record(tune) for arm in arms}
        if record.keys() != self.optuna.user_attrs.get("tuned", {}).keys():
            self.optuna.set_user_attr("tuned", record)
        for arm in arms:
            for planned in self._unstored_main(arm, trials):
                self._enqueue(planned, tuned_on=record[arm.name]["tuned_on"])

    def _unstored_main(self, arm: ArmState, trials: list[FrozenTrial]) -> list[PlannedTrial]:
        """The trials of the study's seeds that an arm with a choice does not have yet."""
        params, seeds, stored = arm.params_chosen, self.study.file.seeds, stored_identities(trials)
        if params is None:
            return []
        missing = [seed for seed in seeds if cell_identity(params, [seed]) not in stored]
        if missing and arm.name not in self._composed:  # this takes a tenth of a second
            self._composed[arm.name] = self.study.config(params, seeds[0])
        planned = [
            PlannedTrial(params, seed, replace(self._composed[arm.name], seed=seed)) for seed in missing
        ]
        return [each for each in planned if each.key not in stored]

    def _to_come(self, arm: ArmState, trials: list[FrozenTrial]) -> int:
        """How many trials of an arm are not enqueued yet, and will be."""
        if arm.choice is None:
            return len(self.study.file.seeds) if can_be_chosen(arm.trials) else 0
        return len(self._unstored_main(arm, trials))

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self) -> ClaimedTrial | None:
        """Claims the next trial: an abandoned, a waiting or a newly drawn one. None if there is none now."""
        with self.storage.exclusive():
            self._enqueue_chosen()
            trials, wanted = self.trials(), self.study.file.trials
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and is_expired(frozen):
                    self._set_sampler(frozen.number)
                    return self._take(Trial(self.optuna, frozen._trial_id))
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if waiting:
                self._set_sampler(waiting[0])  # the trial that Optuna's ask returns
                return self._take(self.optuna.ask())
            if wanted is not None and len(counted(trials)) < wanted:
                return self._draw()
        return None

    def _take(self, trial: Trial) -> ClaimedTrial | None:
        """Signs a trial for this worker; None if constraints forbid what is drawn for it."""
        self._sign(trial)
        attributes = trial.user_attrs
        before = attributes.get("seconds", 0.0)
        if "cell" not in attributes:  # a retry, or its worker died before the draw was stored
            params, seeds = draw_params(self.study, self.optuna, trial), self.study.file.seeds
            return None if params is None else ClaimedTrial(trial, params, seeds, seconds_before=before)
        if "choices" in attributes:
            suggest_enqueued(trial)
        tuning, tuned_on = "tuning" in attributes, attributes.get("tuned_on")
        return ClaimedTrial(trial, attributes["cell"], attributes["seeds"], tuning, tuned_on, before)

    def _draw(self) -> ClaimedTrial:
        for draws in range(MOST_DRAWS):
            self._set_sampler(len(self.trials()), None if draws < SAMPLER_DRAWS else "random")
            if (claimed := self._take(self.optuna.ask())) is not None:
                return claimed
        raise UserError(
            f"where={self.study.file.where} forbade {MOST_DRAWS} draws in a row; narrow the space to what "
            "it allows"
        )

    def _set_sampler(self, number: int, kind: str | None = None) -> None:
        self.optuna.sampler = make_sampler(self.study, number, kind or self.study.file.sampler)

    # --- leases -----------------------------------------------------------------------------------

    def renew(self, claimed: ClaimedTrial) -> bool:
        """Renews the lease; False if it expired and a different worker has the trial."""
        with self.storage.exclusive():
            if owned := self._owns(claimed):
                self._sign(claimed.trial)
                claimed.trial.set_user_attr("seconds", claimed.seconds)
        return owned

    def release(self, claimed: ClaimedTrial) -> None:
        """Ends the lease, so that any worker may take the trial at once."""
        with self.storage.exclusive():
            if self._owns(claimed):
                claimed.trial.set_user_attr("seconds", claimed.seconds)
                claimed.trial.set_user_attr("lease", [self.worker, 0.0])

    def _sign(self, trial: Trial) -> None:
        trial.set_user_attr("lease", [self.worker, time.time() + self.lease])

    def _owns(self, claimed: ClaimedTrial) -> bool:
        frozen = self.trials()[claimed.number]
        return frozen.state == TrialState.RUNNING and frozen.user_attrs["lease"][0] == self.worker

    # --- results, which are dropped if a different worker has the trial ----------------------------

    def report(self, claimed: ClaimedTrial, value: float, step: int) -> None:
        """Stores an intermediate value for the pruner."""
        with self.storage.exclusive():
            if self._owns(claimed):
                claimed.trial.report(value, step)

    def finish(self, claimed: ClaimedTrial, values: list[float]) -> None:
        self._end(claimed, values=values)

    def fail(self, claimed: ClaimedTrial, error: str) -> None:
        self._end(claimed, {"error": error}, state=TrialState.FAIL)

    def prune(self, claimed: ClaimedTrial) -> None:
        self._end(claimed, state=TrialState.PRUNED)

    def finish_tuning(self, claimed: ClaimedTrial, losses: dict[int, float] | None) -> None:
        """losses: by exit; None: the run diverged."""
        # Optuna calls it pruned: it has finished, and has no value among those of the objectives.
        self._end(claimed, {"losses": losses}, state=TrialState.PRUNED)

    def _end(self, claimed: ClaimedTrial, facts: dict[str, Any] | None = None, **outcome: Any) -> None:
        with self.storage.exclusive():
            if not self._owns(claimed):
                return
            for name, value in {**(facts or {}), "seconds": claimed.seconds}.items():
                claimed.trial.set_user_attr(name, value)
            self.optuna.tell(claimed.trial, **outcome)


def identities(params: Params, seeds: list[int], key: str) -> set[str]:
    """What identifies a trial of a grid: its parameters, or its run.

    A different version of eltlab may have more keys, and so a different digest of the same run; a changed
    study file may give the same run different parameters.
    """
    return {cell_identity(params, seeds), key}


def cell_identity(params: Params, seeds: list[int]) -> str:
    return json.dumps([params, seeds], sort_keys=True)


def identities_of(planned: PlannedTrial) -> set[str]:
    return identities(planned.params, [planned.seed], planned.key)


def stored_identities(trials: Iterable[FrozenTrial]) -> set[str]:
    facts = [trial.user_attrs for trial in trials]
    return set().union(*(identities(each["cell"], each["seeds"], each["key"]) for each in facts))


def is_tuning(trial: FrozenTrial) -> bool:
    return "tuning" in trial.user_attrs


def seconds_of(trial: FrozenTrial) -> float:
    """How long a finished trial was worked on: Optuna's duration includes the time that it waited."""
    if (seconds := trial.user_attrs.get("seconds")) is not None:
        return seconds
    return 0.0 if trial.duration is None else trial.duration.total_seconds()  # an older version's trial


def is_expired(trial: FrozenTrial) -> bool:
    """Whether the lease of a running trial has expired. A trial that was never signed counts as expired."""
    _, until = trial.user_attrs.get("lease", (None, 0.0))
    return until < time.time()


def counted(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that constraints forbade and those that were retried."""
    trials = list(trials)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    return [t for t in trials if t.number not in retried and "forbidden" not in t.user_attrs]


def failed(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that failed and were not retried."""
    return [trial for trial in counted(trials) if trial.state == TrialState.FAIL]


def failure_reason(trial: FrozenTrial) -> str:
    """Why a trial failed, in one line: how it ended, the path of its log, and the log's last line."""
    lines = [line for line in str(trial.user_attrs.get("error", "")).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


# --- the study as a whole -------------------------------------------------------------------------
#
# A study may grow (seeds, choices of a grid, trials), but what its numbers mean may not change.


def check_meaning(record: optuna.Study, study: Study, storage: Storage) -> None:
    """Stores what the study's numbers mean. Raises UserError if that contradicts what is stored."""
    known, meaning = refuse_changes(record, study, storage)
    if not known:
        with warnings.catch_warnings():  # Optuna calls metric names experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            record.set_metric_names(list(study.file.objectives))
    if not meaning.keys() <= known.keys():  # "watch" is added when the study first has a pruner
        record.set_user_attr("meaning", {**meaning, **known})


def stored_objectives(record: optuna.Study) -> list[str]:
    return record.user_attrs.get("meaning", {}).get("objectives", [])


def refuse_changes(
    record: optuna.Study, study: Study, storage: Storage
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the study's numbers mean, as it is stored and now. Raises UserError if the two differ."""
    meaning = json.loads(json.dumps(meaning_of(study)))  # tuples become lists, as in the storage
    known = record.user_attrs.get("meaning", {})
    if contradictions := differences(known, meaning):
        raise contradiction(study, storage, "; ".join(contradictions))
    return known, meaning


def check_folder(record: optuna.Study, study: Study, storage: Storage) -> None:
    """Stores the folder of the runs. Raises UserError if this study looks for them elsewhere.

    A database knows a study by its name only, whatever its runs_dir.
    """
    known = record.user_attrs.get("folder")
    if known is None:
        record.set_user_attr("folder", str(study.folder.resolve()))
    elif not study.folder.is_dir() and record.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        raise UserError(
            f"runs_dir={study.runs_dir}: no runs of {study.name} there, and trials of it in "
            f"{storage.where} are complete; it was started with its runs in {known}: give the "
            "runs_dir that has them, or start another study with another database"
        )


def store_code(record: optuna.Study) -> None:
    """Stores the code that runs the trials, unless a trial has finished under code that is not stored."""
    if "code" not in record.user_attrs and not record.get_trials(
        deepcopy=False, states=[TrialState.COMPLETE]
    ):
        record.set_user_attr("code", [code_version(), SOURCE])


def contradiction(study: Study, storage: Storage, what: str) -> UserError:
    other = "database" if "://" in storage.where else "runs_dir"
    return UserError(
        f"{study.name} in {storage.where}: the study was started with another file: {what}; restore the "
        f"file and the files of conf/ that it names, or start another study with another {other}"
    )


def meaning_of(study: Study) -> dict[str, Any]:
    """What makes the numbers of all trials comparable. Its keys are stored: do not rename them."""
    file = study.file
    meaning: dict[str, Any] = {
        "base": identifying_overrides(file.base, study.base),
        # In order: a trial's values have no other names.
        "objectives": [f"{metric}: {direction}" for metric, direction in file.objectives.items()],
        "matched": file.matched,
        # The resolved budget: the files of conf/ that base names may change, and so may the FLOP count.
        f"budget in {file.matched}": study.base.images if study.budget is None else study.budget,
        "sampler": file.sampler,
        "tune": None if file.tune is None else asdict(file.tune),
    }
    if file.sampler != "grid":
        meaning |= {"space": file.space, "where": file.where, "seeds": file.seeds}
    if file.pruner != "none":
        meaning["watch"] = file.watch
    return meaning


def differences(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How two meanings of a study differ, in words. Keys that are in one of them only are ignored."""
    found = []
    for key, value in now.items():
        before = known.get(key, value)
        if before == value:
            continue
        if isinstance(before, list) and isinstance(value, list):
            removed = [each for each in before if each not in value]
            added = [each for each in value if each not in before]
            if removed or added:
                before, value = removed, added
        found.append(f"{key} was {before} and is {value}")
    return found
