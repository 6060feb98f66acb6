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
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from eltlab.common.errors import UserError
from eltlab.common.package_info import SOURCE, code_version, describe_code
from eltlab.studies.samplers import draw_params, make_pruner, make_sampler, name_parameters, suggest_enqueued
from eltlab.studies.space import Params
from eltlab.studies.storage import Storage, open_storage
from eltlab.studies.study import PlannedTrial, Study, identifying_overrides
from eltlab.studies.study_file import SweepKeys

# User attributes of each trial of a grid; "cell" holds its parameters. The storage has these names and
# "lease", "error", "retry_of" and "forbidden": do not rename them.
GRID_ATTRIBUTES = ("cell", "seeds", "arm", "key", "choices")
# Draws in a row that the constraints may forbid. After SAMPLER_DRAWS the next ones are random, because not
# every sampler learns what is forbidden. study.check_draws makes sure that MOST_DRAWS are not reached.
SAMPLER_DRAWS, MOST_DRAWS = 50, 2000


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker holds."""

    trial: Trial
    params: Params
    seeds: list[int]

    @property
    def number(self) -> int:
        return self.trial.number


def open_queue(study: Study, keys: SweepKeys, workers: int) -> "TrialQueue":
    """The queue for this process. Raises UserError, or Refused."""
    storage = open_storage(keys.storage, study.folder, workers, study.name)
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    return TrialQueue(study, storage, name, keys.lease)


class TrialQueue:
    """The trials of a study in a storage. Every method may raise Refused.

    worker: its unique name. lease: seconds without a renewal after which any worker may take over a trial.
    """

    def __init__(self, study: Study, storage: Storage, worker: str, lease: float) -> None:
        self.study, self.storage, self.worker, self.lease = study, storage, worker, lease
        with storage.exclusive():
            self.optuna = optuna.create_study(
                storage=storage.optuna,
                study_name=study.name,
                directions=list(study.file.objectives.values()),  # type: ignore[arg-type]
                sampler=optuna.samplers.RandomSampler(seed=0),  # _set_sampler replaces it
                pruner=make_pruner(study),
                load_if_exists=True,
            )
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
        return unfinished + (0 if wanted is None else max(wanted - len(counted(trials)), 0))

    # --- filling ----------------------------------------------------------------------------------

    def fill(self, planned: list[PlannedTrial]) -> None:
        """Enqueues the trials of a grid that are not stored yet.

        Raises UserError if a stored trial is still to run and the grid no longer contains it.
        """
        with self.storage.exclusive():
            wanted = set().union(*(identities(t.params, [t.seed], t.key) for t in planned))
            stored: set[str] = set()
            for trial in self.trials():
                facts = trial.user_attrs
                names = identities(facts["cell"], facts["seeds"], facts["key"])
                if not trial.state.is_finished() and not names & wanted:
                    what = f"trial {trial.number} ({facts['arm']}, seed {facts['seeds'][0]}) is still to run"
                    what += ", and the space or the seeds no longer contain it"
                    raise contradiction(self.study, self.storage, what)
                stored |= names
            new = [t for t in planned if not identities(t.params, [t.seed], t.key) & stored]
            if new:  # refused before the study grows
                self.check_code()
            for each in new:
                self._enqueue(each)

    def _enqueue(self, planned: PlannedTrial) -> None:
        named = name_parameters(self.optuna, self.study.file.space, planned.params)
        attributes = {
            "cell": planned.params,
            "seeds": [planned.seed],
            "arm": self.study.arm(planned.params, planned.config),
            "key": planned.key,
            "choices": {name: choices for name, (_, choices) in named.items()},
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

    # --- claiming ---------------------------------------------------------------------------------

    def claim(self) -> ClaimedTrial | None:
        """Claims the next trial: an abandoned, a waiting or a newly drawn one. None if there is none now."""
        with self.storage.exclusive():
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
        if "cell" not in attributes:  # a retry, or its worker died before the draw was stored
            params = draw_params(self.study, self.optuna, trial)
            return None if params is None else ClaimedTrial(trial, params, self.study.file.seeds)
        if "choices" in attributes:
            suggest_enqueued(trial)
        return ClaimedTrial(trial, attributes["cell"], attributes["seeds"])

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
        return owned

    def release(self, claimed: ClaimedTrial) -> None:
        """Ends the lease, so that any worker may take the trial at once."""
        with self.storage.exclusive():
            if self._owns(claimed):
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
        self._end(claimed, error, state=TrialState.FAIL)

    def prune(self, claimed: ClaimedTrial) -> None:
        self._end(claimed, state=TrialState.PRUNED)

    def _end(self, claimed: ClaimedTrial, error: str | None = None, **outcome: Any) -> None:
        with self.storage.exclusive():
            if not self._owns(claimed):
                return
            if error is not None:
                claimed.trial.set_user_attr("error", error)
            self.optuna.tell(claimed.trial, **outcome)


def identities(params: Params, seeds: list[int], key: str) -> set[str]:
    """What identifies a trial of a grid: its parameters, or its run.

    A different version of eltlab may have more keys, and so a different digest of the same run; a changed
    study file may give the same run different parameters.
    """
    return {json.dumps([params, seeds], sort_keys=True), key}


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
    meaning = json.loads(json.dumps(meaning_of(study)))  # tuples become lists, as in the storage
    known = record.user_attrs.get("meaning", {})
    if contradictions := differences(known, meaning):
        raise contradiction(study, storage, "; ".join(contradictions))
    if not known:
        with warnings.catch_warnings():  # Optuna calls metric names experimental
            warnings.simplefilter("ignore", ExperimentalWarning)
            record.set_metric_names(list(study.file.objectives))
    if not meaning.keys() <= known.keys():  # "watch" is added when the study first has a pruner
        record.set_user_attr("meaning", {**meaning, **known})


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
