"""What a storage records about a study as a whole, and the checks of a study file against it.

A study may grow (seeds, choices of a grid, trials), but what its numbers mean may not change.
"""

import json
import warnings
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from eltlab.common.errors import UserError
from eltlab.studies.storage import Storage
from eltlab.studies.study import Study, identifying_overrides


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
