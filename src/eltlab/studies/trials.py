"""Who runs which trial of a study: claimed under a lock, held by a lease, finished once.

A worker that dies leaves a lease that runs out; the next worker takes the same trial over, and its
runs go on from their checkpoints. So a trial is completed exactly once, however many workers died.
"""

import json
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, Trial, TrialState

from eltlab.common.errors import UserError
from eltlab.common.hashing import digest
from eltlab.studies.parameters import parameters, register
from eltlab.studies.space import Params, draw
from eltlab.studies.storage import Storage
from eltlab.studies.study import Planned, Study, differing

GRID_FACTS = ("cell", "seeds", "arm", "key", "choices")
POPULATION = 12  # of NSGA-II; small, because an individual is a training
# Cells drawn in a row that the constraints forbid: after MISSED the next are drawn at random, because
# not every sampler learns what is forbidden; LOST in a row do not happen (study.check_draws).
MISSED, LOST = 50, 2000


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this worker holds."""

    trial: Trial
    cell: Params
    seeds: list[int]

    @property
    def number(self) -> int:
        return self.trial.number


class TrialQueue:
    """The trials of a study in a storage.

    Args:
        worker: a name that no other worker has.
        lease: seconds that a trial stays this worker's without a sign of life.
    """

    def __init__(self, study: Study, storage: Storage, worker: str, lease: float) -> None:
        self.study, self.storage, self.worker, self.lease = study, storage, worker, lease
        with storage.exclusive():
            self.optuna = optuna.create_study(
                storage=storage.optuna,
                study_name=study.name,
                directions=list(study.file.objectives.values()),  # type: ignore[arg-type]
                sampler=optuna.samplers.RandomSampler(seed=0),  # _sampler_of gives that of the file
                pruner=pruner(study),
                load_if_exists=True,
            )
            self._check_meaning()
            self._check_folder()

    def _check_meaning(self) -> None:
        """A study may grow (seeds, choices of a grid, trials); what its numbers mean may not change."""
        meaning = json.loads(json.dumps(meaning_of(self.study)))  # as the storage gives it back
        known = self.optuna.user_attrs.get("meaning", {})
        if contradicting := differences(known, meaning):
            raise self._contradicts("; ".join(contradicting))
        if not known:
            with warnings.catch_warnings():  # experimental, says Optuna
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.optuna.set_metric_names(list(self.study.file.objectives))
        if not meaning.keys() <= known.keys():  # a first pruner brings what it watches
            self.optuna.set_user_attr("meaning", {**meaning, **known})

    def _check_folder(self) -> None:
        """A database knows a study by its name alone: its runs must be where they are looked for."""
        folder = self.study.folder
        known = self.optuna.user_attrs.get("folder")
        if known is None:
            self.optuna.set_user_attr("folder", str(folder.resolve()))
        elif not folder.is_dir() and any(t.state == TrialState.COMPLETE for t in self.trials()):
            raise UserError(
                f"runs_dir={self.study.runs_dir}: no runs of {self.study.name} there, and trials of it "
                f"in {self.storage.where} are complete; it was begun with its runs in {known}: give the "
                "runs_dir that has them, or begin anew with another database"
            )

    def _contradicts(self, what: str) -> UserError:
        other = "database" if "://" in self.storage.where else "runs_dir"
        return UserError(
            f"{self.study.name} in {self.storage.where}: the study was begun with another file: {what}; "
            f"restore the file and what of conf/ it names, or begin anew with another {other}"
        )

    # --- what there is to do ------------------------------------------------------------------------

    def fill(self, planned: list[Planned]) -> None:
        """Enqueues the trials of a grid that are not there yet.

        Raises UserError where a trial is still to run that the grid no longer has.
        """
        with self.storage.exclusive():
            stored = {trial.number: names_of(trial) for trial in self.trials()}
            known = set().union(*stored.values())
            wanted = set().union(*(names(each) for each in planned))
            for trial in self.trials():
                if not trial.state.is_finished() and not stored[trial.number] & wanted:
                    raise self._contradicts(
                        f"trial {trial.number} ({trial.user_attrs['arm']}, seed "
                        f"{trial.user_attrs['seeds'][0]}) is still to run, and the space or the seeds "
                        "no longer have it"
                    )
            for each in planned:
                if not names(each) & known:
                    named = parameters(self.optuna, self.study.file.space, each.cell)
                    facts = {
                        "cell": each.cell,
                        "seeds": [each.seed],
                        "arm": self.study.arm(each.cell, each.config),
                        "key": each.key,
                        "choices": {name: choices for name, (_, choices) in named.items()},
                    }
                    values = {name: value for name, (value, _) in named.items()}
                    self.optuna.enqueue_trial(values, user_attrs=facts)

    def retry(self) -> None:
        """Enqueues every trial that failed, and was not tried again yet, once more."""
        with self.storage.exclusive():
            for trial in failed(self.trials()):
                attributes = trial.user_attrs
                # A grid's cell is known; a sampler's is drawn again, from the same parameters.
                kept = attributes if self.study.file.sampler == "grid" else {}
                kept = {key: kept[key] for key in GRID_FACTS if key in kept}
                self.optuna.enqueue_trial(
                    trial.params, user_attrs={**kept, "retry_of": trial.number}
                )

    def trials(self) -> list[FrozenTrial]:
        """All of them. Raises Refused, as every method may."""
        with self.storage.refusals():
            return self.optuna.get_trials(deepcopy=False)

    def left(self) -> int:
        """Trials that are not finished, begun or not."""
        trials = self.trials()
        open_trials = sum(not trial.state.is_finished() for trial in trials)
        if self.study.file.trials is None:
            return open_trials
        return open_trials + max(self.study.file.trials - len(counted(trials)), 0)

    # --- one trial --------------------------------------------------------------------------------

    def claim(self) -> ClaimedTrial | None:
        """The next trial, now this worker's: one whose lease ran out, a waiting one, or a new one of the
        sampler. None where there is none at the moment."""
        with self.storage.exclusive():
            trials = self.trials()
            for frozen in trials:
                if frozen.state == TrialState.RUNNING and expired(frozen):
                    self._sampler_of(frozen.number)
                    return self._hold(Trial(self.optuna, frozen._trial_id))
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            if waiting:
                self._sampler_of(waiting[0])  # the one that Optuna takes
                return self._hold(self.optuna.ask())
            wanted = self.study.file.trials
            if wanted is not None and len(counted(trials)) < wanted:
                return self._draw()
        return None

    def _sampler_of(self, number: int, kind: str | None = None) -> None:
        self.optuna.sampler = sampler(self.study, number, kind or self.study.file.sampler)

    def _hold(self, trial: Trial) -> ClaimedTrial | None:
        self._sign(trial)
        attributes = trial.user_attrs
        if "cell" not in attributes:  # tried again, or its worker died between asking and drawing
            return self._drawn(trial)
        if "choices" in attributes:
            register(trial)
        return ClaimedTrial(trial, attributes["cell"], attributes["seeds"])

    def _draw(self) -> ClaimedTrial:
        for missed in range(LOST):
            kind = self.study.file.sampler if missed < MISSED else "random"
            self._sampler_of(len(self.trials()), kind)
            trial = self.optuna.ask()
            self._sign(trial)
            claimed = self._drawn(trial)
            if claimed is not None:
                return claimed
        raise UserError(
            f"where={self.study.file.where}: {LOST} draws in a row were forbidden by it; narrow the "
            "space to what it leaves"
        )

    def _drawn(self, trial: Trial) -> ClaimedTrial | None:
        """A new trial with what the sampler drew for it; None where the constraints forbid that."""
        cell = draw(self.study.file.space, trial)
        if not self.study.allows(cell):
            trial.set_user_attr("forbidden", self.study.file.where)
            # Not failed: TPE forgets those, and would draw there again and again, where it knows nothing.
            self.optuna.tell(trial, state=TrialState.PRUNED)
            return None
        seeds = self.study.file.seeds
        with suppress(UserError):  # the rules refuse the cell: said when the trial is run
            trial.set_user_attr("arm", self.study.arm(cell, self.study.config(cell, seeds[0])))
        trial.set_user_attr("seeds", seeds)
        trial.set_user_attr("cell", cell)  # last: a trial that has one is whole
        return ClaimedTrial(trial, cell, seeds)

    def _sign(self, trial: Trial) -> None:
        trial.set_user_attr("lease", [self.worker, time.time() + self.lease])

    def renew(self, claimed: ClaimedTrial) -> bool:
        """Signs the lease anew; False where it ran out and another worker has the trial."""
        with self.storage.exclusive():
            if not self._mine(claimed):
                return False
            self._sign(claimed.trial)
        return True

    def release(self, claimed: ClaimedTrial) -> None:
        """Lets another worker take the trial at once."""
        with self.storage.exclusive():
            if self._mine(claimed):
                claimed.trial.set_user_attr("lease", [self.worker, 0.0])

    def report(self, claimed: ClaimedTrial, value: float, step: int) -> None:
        """Tells the pruner how a trial stands that is still this worker's."""
        with self.storage.exclusive():
            if self._mine(claimed):
                claimed.trial.report(value, step)

    def finish(self, claimed: ClaimedTrial, values: list[float]) -> None:
        self._tell(claimed, values=values)

    def fail(self, claimed: ClaimedTrial, reason: str) -> None:
        self._tell(claimed, reason, state=TrialState.FAIL)

    def prune(self, claimed: ClaimedTrial) -> None:
        self._tell(claimed, state=TrialState.PRUNED)

    def _tell(self, claimed: ClaimedTrial, reason: str | None = None, **outcome: Any) -> None:
        with self.storage.exclusive():
            if not self._mine(claimed):
                return
            if reason is not None:
                claimed.trial.set_user_attr("error", reason)
            self.optuna.tell(claimed.trial, **outcome)

    def _mine(self, claimed: ClaimedTrial) -> bool:
        frozen = self.trials()[claimed.number]
        return frozen.state == TrialState.RUNNING and frozen.user_attrs["lease"][0] == self.worker


def expired(trial: FrozenTrial) -> bool:
    """Whether a trial that runs has given no sign of life for its lease; one that was never signed has."""
    _, until = trial.user_attrs.get("lease", (None, 0.0))
    return until < time.time()


def failed(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Those that failed, and were not tried again."""
    return [trial for trial in counted(trials) if trial.state == TrialState.FAIL]


def reason(trial: FrozenTrial) -> str:
    """Why a trial failed, in a line: how it ended, where its log is, and the last that it printed."""
    lines = [line for line in str(trial.user_attrs.get("error", "")).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """All trials but those that constraints forbade to a sampler, and those that were tried again."""
    again = {trial.user_attrs.get("retry_of") for trial in trials}
    return [
        trial
        for trial in trials
        if trial.number not in again and "forbidden" not in trial.user_attrs
    ]


def names(planned: Planned) -> set[str]:
    """What a trial of a grid is known by: its cell, and the run that it is. Another version of eltlab
    may have more keys, and so another name for the run; another file may call the run otherwise."""
    return {json.dumps([planned.cell, [planned.seed]], sort_keys=True), planned.key}


def names_of(trial: FrozenTrial) -> set[str]:
    """The same of a trial that is stored."""
    facts = trial.user_attrs
    return {json.dumps([facts["cell"], facts["seeds"]], sort_keys=True), facts["key"]}


def meaning_of(study: Study) -> dict[str, Any]:
    """What makes the numbers of all trials comparable."""
    file = study.file
    meaning: dict[str, Any] = {
        "base": differing(file.base, study.base),
        # In order: a trial's values are known by their places.
        "objectives": [f"{metric}: {direction}" for metric, direction in file.objectives.items()],
        "matched": file.matched,
        # What base comes to: the files of conf/ that it names may change, and the count of FLOPs.
        f"budget in {file.matched}": study.base.images if study.budget is None else study.budget,
        "sampler": file.sampler,
    }
    if file.sampler != "grid":
        meaning |= {"space": file.space, "where": file.where, "seeds": file.seeds}
    if file.pruner != "none":
        meaning["watch"] = file.watch
    return meaning


def differences(known: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between two meanings of a study, in words. What one lacks contradicts nothing."""
    found = []
    for key, value in now.items():
        before = known.get(key, value)
        if before == value:
            continue
        if isinstance(before, list) and isinstance(value, list):
            gone = [each for each in before if each not in value]
            new = [each for each in value if each not in before]
            if gone or new:
                before, value = gone, new
        found.append(f"{key} was {before} and is {value}")
    return found


def sampler(study: Study, number: int, kind: str) -> optuna.samplers.BaseSampler:
    """A sampler for a trial. Its draws are a function of the study and the trial's number: not
    of which worker asks, and no two workers draw the same."""
    seed = int(digest(study.file.seeds[0], "sampler", number), 16) % 2**32
    match kind:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def pruner(study: Study) -> optuna.pruners.BasePruner:
    """The pruner of a study file. Its steps are images, as pruning.Watched counts them."""
    images = study.base.images
    match study.file.pruner:
        case "median":
            # Not before a quarter of the budget: the first losses tell warm-ups apart, not trials.
            return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=images // 4)
        case "hyperband":
            first = max(1, images // study.base.trainer.validations)
            return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=images)
    return optuna.pruners.NopPruner()
