"""How each arm of a study gets its own values of the tuned keys, by held-out losses of shorter runs.

For every arm all combinations of the candidates are trained with the tuning seeds: on nine tenths of the
training split, for a share of the budget. The tenth that they do not see gives their losses. The trials of
the study's seeds are enqueued with the combination of the lowest loss, and train on the whole split.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from eltlab.config.schema import Config
from eltlab.studies.space import Params, grid
from eltlab.studies.study import PlannedTrial, Study, grid_trials
from eltlab.studies.study_file import Tune


class TunedArm(NamedTuple):
    """An arm before its values are chosen."""

    name: str
    params: Params  # without the tuned keys
    tuning: list[PlannedTrial]  # every combination of the candidates, with every tuning seed
    main: list[PlannedTrial]  # every combination, with every seed of the study; one combination is trained


def tuned_arms(study: Study) -> list[TunedArm]:
    """Every arm of a grid whose study has `tune`. Raises UserError if a configuration is invalid."""
    tune = study.file.tune
    assert tune is not None
    first = study.file.seeds[0]
    arms: list[TunedArm] = []
    runs: dict[str, PlannedTrial] = {}  # arms that only measure differently share their tuning trials
    for params, _, untuned in [trial for trial in grid_trials(study) if trial.seed == first]:
        combinations = [params | chosen for chosen in grid(tune.keys)]
        configs = [study.config(each, first) for each in combinations]
        tuning = with_seeds(combinations, [tuning_config(config, tune) for config in configs], tune.seeds)
        tuning = [runs.setdefault(trial.key, trial) for trial in tuning]
        main = with_seeds(combinations, configs, study.file.seeds)
        arms.append(TunedArm(study.arm(params, untuned), params, tuning, main))
    return arms


def with_seeds(params: list[Params], configs: list[Config], seeds: list[int]) -> list[PlannedTrial]:
    pairs = zip(params, configs, strict=True)
    return [PlannedTrial(p, seed, replace(config, seed=seed)) for p, config in pairs for seed in seeds]


def tuning_runs(arms: list[TunedArm]) -> list[PlannedTrial]:
    """The tuning trials of all arms, each once."""
    return list({id(trial): trial for arm in arms for trial in arm.tuning}.values())


def tuning_config(config: Config, tune: Tune) -> Config:
    """The tuning run for a trial's configuration. It has no rows: its last validation is its result."""
    study, _, arm = str(config.name).partition("/")
    return replace(
        config,
        name=f"{study}/tuning/{arm}",
        data=replace(config.data, tuning=True),
        budget=replace(config.budget, images=max(1, round(config.steps * tune.budget)) * config.batch_size),
        trainer=replace(config.trainer, validations=1, grids=0),
        evaluate=False,
    )


# --- the choice -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One combination of the tuned keys in one arm."""

    params: Params  # the tuned keys only
    loss: float | None  # mean over the tuning seeds; None: a run diverged


@dataclass(frozen=True)
class Choice:
    """What the finished tuning runs of an arm say."""

    candidates: list[Candidate]

    @property
    def chosen(self) -> Candidate | None:
        """The lowest loss, the first if several are equal. None: all diverged."""
        finite = [each for each in self.candidates if each.loss is not None]
        return min(finite, key=lambda each: each.loss or 0.0) if finite else None

    def at_edge(self, tune: Tune) -> list[str]:
        """The keys whose chosen value is the smallest or largest candidate: the best may lie outside."""
        best = self.chosen
        numbers = {
            key: values
            for key, values in tune.keys.items()
            if len(values) > 1 and all(type(value) in (int, float) for value in values)
        }
        return [
            key
            for key, values in numbers.items()
            if best is not None and best.params[key] in (min(values), max(values))
        ]

    @property
    def text(self) -> str:
        """Every candidate with its loss."""
        return ", ".join(
            f"{describe_params(each.params)}: {'diverged' if each.loss is None else f'{each.loss:.5g}'}"
            for each in self.candidates
        )


def describe_params(params: Params) -> str:
    return " ".join(f"{key}={value}" for key, value in params.items())


def describe_tuning(tune: Tune) -> str:
    """What the values are chosen on, in words."""
    what = "of the last exit" if tune.by == "full" else "mean over exits"
    seeds = ", ".join(map(str, tune.seeds))
    return (
        f"held-out loss on a tenth of the training split, {what}, "
        f"tuning seed{'s' if len(tune.seeds) > 1 else ''} {seeds}, {tune.budget:g} of the budget"
    )


def candidate_loss(losses: Iterable[Mapping[str, float] | None], by: str) -> float | None:
    """The mean over tuning seeds of the loss of the last exit (full) or of the mean over exits (mean).

    losses: of each seed's run by exit, or None if it diverged. None: one of them is not finite.
    """
    values = []
    for by_exit in losses:
        if by_exit is None:
            return None
        values.append(list(by_exit.values())[-1] if by == "full" else sum(by_exit.values()) / len(by_exit))
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else None


class ArmState(NamedTuple):
    """An arm of a study with `tune`, as it is stored."""

    name: str
    params: Params  # without the tuned keys
    trials: list[FrozenTrial]  # its tuning trials, or their retries
    choice: Choice | None  # None: some have not finished, or have failed
    attempts: list[FrozenTrial]  # its tuning trials, and their retries

    @property
    def params_chosen(self) -> Params | None:
        """All parameters of its trials; None: there is no choice, or all runs diverged."""
        best = None if self.choice is None else self.choice.chosen
        return None if best is None else self.params | best.params

    @property
    def flops(self) -> float:
        """Training FLOPs of its tuning trials. One that failed counts in full."""
        return tuning_flops([self])

    def record(self, tune: Tune) -> dict[str, Any]:
        """What was chosen, among what and on what, for the storage and the rows."""
        assert self.choice is not None
        best = self.choice.chosen
        return {
            "tuned": None if best is None else best.params,
            "tuned_on": f"{describe_tuning(tune)}; {self.choice.text}",
            "losses": [[each.params, each.loss] for each in self.choice.candidates],
            "at_edge": self.choice.at_edge(tune),
        }


def tuning_flops(arms: list[ArmState]) -> float:
    """Training FLOPs of the tuning trials of all arms, with those that were retried, each trial once."""
    attempts = {trial.number: trial for arm in arms for trial in arm.attempts}
    return sum(trial.user_attrs["tuning"] for trial in attempts.values())


def choose(tune: Tune, trials: list[FrozenTrial]) -> Choice | None:
    """The choice of an arm from its tuning trials, in the order of the candidates. None: some have not
    finished, or failed otherwise than by diverging."""
    if not all(trial.state.is_finished() and "losses" in trial.user_attrs for trial in trials):
        return None
    candidates: dict[str, tuple[Params, list[Any]]] = {}
    for trial in trials:
        params = {key: trial.user_attrs["cell"][key] for key in tune.keys}
        candidates.setdefault(json.dumps(params), (params, []))[1].append(trial.user_attrs["losses"])
    return Choice([Candidate(p, candidate_loss(losses, tune.by)) for p, losses in candidates.values()])


def can_be_chosen(trials: list[FrozenTrial]) -> bool:
    """Whether an arm without a choice will have one: none of its tuning trials has failed."""
    return all(trial.state != TrialState.FAIL for trial in trials)
