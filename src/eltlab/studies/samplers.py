"""Optuna's samplers and pruners for a study, and how a sampler draws the parameters of a trial."""

from contextlib import suppress

import optuna
from optuna.trial import Trial, TrialState

from eltlab.common.cache import digest
from eltlab.common.errors import UserError
from eltlab.studies.space import Params, draw
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
    """The pruner of the study file. Its steps are images, as pruning.Watcher counts them."""
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
