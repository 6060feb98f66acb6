"""Optuna's samplers and pruners for a study, and the names that a grid's parameters have in Optuna."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.studies.space import Params, draw, plain, values_of
from eltlab.studies.study import Study

POPULATION = 12  # of NSGA-II; small, because an individual is a training


def make_sampler(study: Study, number: int, kind: str) -> optuna.samplers.BaseSampler:
    """The sampler that draws trial `number`.

    Its seed depends on the study and the number only: the draw does not depend on which worker asks, and
    no two trials draw the same.
    """
    seed = int(digest(study.file.seeds[0], "sampler", number), 16) % 2**32
    match kind:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        case "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(study: Study) -> optuna.pruners.BasePruner:
    """The pruner of the study file. Its steps are images, as worker.Watcher counts them."""
    images = study.base.images
    match study.file.pruner:
        case "median":
            # Not before a quarter of the budget: the first losses compare warm-ups, not trials.
            return optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=images // 4)
        case "hyperband":
            first = max(1, images // study.base.trainer.validations)
            return optuna.pruners.HyperbandPruner(min_resource=first, max_resource=images)
    return optuna.pruners.NopPruner()


def draw_params(study: Study, queue: optuna.Study, trial: Trial) -> Params | None:
    """Draws a trial's parameters and stores them; None, with the trial ended, if constraints forbid them."""
    params = draw(study.file.space, trial)
    if not study.allows(params):
        trial.set_user_attr("forbidden", study.file.where)
        # Pruned and not failed: TPE ignores failed trials, and would draw the same region again and again.
        queue.tell(trial, state=TrialState.PRUNED)
        return None
    seeds = study.file.seeds
    with suppress(UserError):  # fit's rules refuse the parameters: reported when the trial runs
        trial.set_user_attr("arm", study.arm(params, study.config(params, seeds[0])))
    trial.set_user_attr("seeds", seeds)
    trial.set_user_attr("cell", params)  # last: it marks the record as complete
    return params


# --- the parameters of a grid, for Optuna's plots and tables --------------------------------------
#
# Optuna never lets the kind or the choices of a name change, but a grid may grow. So a name stands either for
# numbers, whose bounds may change, or for one set of choices. All numbers are floats, because fractions may
# be added to whole numbers later.


def name_parameters(
    record: optuna.Study, space: Mapping[str, Any], params: Params
) -> dict[str, tuple[Any, list[Any]]]:
    """The value and the choices of each parameter by its name, for a trial to enqueue."""
    first = dict(record.user_attrs.get("choices", {}))  # the first choices of each key
    named = {}
    for key, value in params.items():
        choices = [plain(each) for each in values_of(space, key)]
        named[name_of(key, first.setdefault(key, choices), choices)] = (plain(value), choices)
    if first != record.user_attrs.get("choices"):
        record.set_user_attr("choices", first)
    return named


def name_of(key: str, first: list[Any], choices: list[Any]) -> str:
    """The key itself for the choices that it had first; a different name for other choices."""
    if are_numbers(choices):
        return key if are_numbers(first) else f"{key} (numbers)"
    if repr(choices) == repr(first):  # not ==: 1 and true are equal, but not the same choice
        return key
    return f"{key} ({len(choices)} choices, {digest(choices)[:4]})"


def suggest_enqueued(trial: optuna.Trial) -> None:
    """Makes Optuna record the parameters that a trial was enqueued with."""
    for name, choices in trial.user_attrs["choices"].items():
        # If Optuna refuses a value, it is missing in plots; the trial still runs.
        with suppress(ValueError):
            if are_numbers(choices):
                trial.suggest_float(name, min(choices), max(choices))
            else:
                trial.suggest_categorical(name, choices)


def are_numbers(choices: list[Any]) -> bool:
    return all(type(each) in (int, float) for each in choices)  # bool is neither
