"""The default name of a run: data-objective-model-NxL-supervision, and what differs from the defaults."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from eltlab.common.disk_cache import digest
from eltlab.common.errors import UserError
from eltlab.config.data_rules import NATIVE
from eltlab.config.identity import defines, without_effect
from eltlab.config.keys import flatten
from eltlab.config.rules import BUDGETS, resolve
from eltlab.config.schema import Config

# An option of these groups may set more than the first parts of the name say.
GROUPS = ("data", "optim", "experiment")
# The first parts say these, and a seed has a folder of its own under the name.
SAID = ("seed", "loops", "unique_layers", "model.depth")
BUDGET = "budget.images"  # whatever key gave the budget
MOST = 150  # characters; a file name may have 255


def run_name(config: Config, requested: Config, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The name of a resolved configuration that was given none: runs of one name differ in the seed only.

    requested: the same before `resolve`. given: keys and values of the user. defaults: the value of each
    key under the same groups without other keys of the user.
    """
    options = [Path(str(given[group])).name for group in GROUPS if given.get(group)]
    if config.data.name not in NATIVE and config.data.root is not None:  # any images: the folder says which
        options.append(Path(config.data.root).stem)
    chosen = [each for each in options if each not in (config.data.name, config.objective.name)]
    keys = {BUDGET if key.startswith("budget.") else key for key in given} - {*without_effect(config)}
    different = [
        name_part(key, value)
        for key, value in flatten(config).items()
        if key in keys and key not in SAID and defines(key) and value != without(requested, key, defaults)
    ]
    name = "-".join([str(config.name), *map(clean, chosen), *different])
    return name if len(name) <= MOST else f"{name[: MOST - 7]}-{digest(name)[:6]}"


def without(requested: Config, key: str, defaults: Mapping[str, Any]) -> Any:
    """The resolved value that a key would have if only this key were not given; None if that breaks a rule.

    Other keys may decide it: model.cond_width follows model.width.
    """
    config = copy.deepcopy(requested)
    for name in [f"budget.{each}" for each in BUDGETS] if key == BUDGET else [key]:
        if defaults.get(name) == MISSING:
            return None
        *sections, last = name.split(".")
        section: Any = config
        for each in sections:
            section = getattr(section, each)
        setattr(section, last, copy.deepcopy(defaults.get(name)))
    try:
        return flatten(resolve(config)).get(key)
    except UserError:
        return None


def name_part(key: str, value: Any) -> str:
    """A key and its value in a name: lr0.003. Text appears without its key, and true is the key alone."""
    last = key.split(".")[-1]
    return clean(value if isinstance(value, str) else last if value is True else f"{last}{value}")


def clean(text: str) -> str:
    """Text as part of a folder's name, in which "-" separates the parts."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_.")
