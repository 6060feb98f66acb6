"""Parses command lines into keys: those of a verb, of fit, of a trained run and of a study."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from eltlab.common.command import is_key_value
from eltlab.common.errors import UserError, suggest
from eltlab.common.text import mask_password
from eltlab.config.identity import MEASURING
from eltlab.config.keys import flatten
from eltlab.config.parsing import parse_overrides, set_key, to_config, typed
from eltlab.config.schema import Config
from eltlab.runs.compose_config import resolve_node
from eltlab.runs.run_folder import Run
from eltlab.studies.study_file import storage_url

Keys = TypeVar("Keys")  # the dataclass of a verb's own keys

# Keys that may differ between a run and a later measurement of it.
OPEN_KEYS = (
    *("sampler.", "metrics.", "ema.length", "trainer.accelerator", "trainer.devices", "trainer.nodes"),
    *("data.root", "data.workers", "data.in_memory"),  # where the same images are stored now
)

# Keys that take several values in one evaluation. A list in sampler.loops is one count per step.
LISTED_KEYS = tuple(key for key in MEASURING if key != "sampler.loops")


def own_keys(overrides: list[str], defaults: Keys) -> tuple[Keys, list[str]]:
    """A verb's own keys, set by the overrides and checked, and the remaining overrides, which are fit's.

    Raises UserError.
    """
    own = OmegaConf.structured(defaults)
    mine = [text for text in overrides if text.partition("=")[0] in own]
    urls = [text for text in mine if text.startswith("storage=")]
    for text in urls:  # Hydra's grammar would split a URL, and quote its password in errors
        set_key(own, "storage", storage_url(text.removeprefix("storage=")))
    for key, value in parse_overrides([text for text in mine if text not in urls]):
        set_key(own, key, value)
    return to_config(own), [text for text in overrides if text not in mine]


def study_keys(arguments: list[str], defaults: Keys) -> tuple[str, Keys, list[str]]:
    """The name of a study, a verb's own keys, and the remaining overrides, which are fit's."""
    names = [text for text in arguments if not is_key_value(text)]
    if len(names) != 1:
        given = " and ".join(map(mask_password, names)) or "none"
        raise UserError(f"give one study, e.g. loops_vs_depth preset=quick; here {given}")
    return names[0], *own_keys([text for text in arguments if is_key_value(text)], defaults)


def open_settings(overrides: list[str], defaults: Keys) -> tuple[Run, list[Config], Keys]:
    """`open_run`, with a configuration for each combination of the values that measuring keys have in lists.

    Raises UserError before any is used.
    """
    opened = [open_run(each, defaults) for each in combinations(overrides)]
    run, _, keys = opened[0]
    return run, [config for _, config, _ in opened], keys


def combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides with one value for each measuring key that has a list, in every combination."""
    # The average varies last, so that each is loaded once.
    choices = []
    for text in sorted(overrides, key=lambda text: not text.startswith("ema.length=")):
        [(key, value)] = parse_overrides([text])
        if key not in LISTED_KEYS or not isinstance(value, list):
            choices.append([text])
            continue
        if not value:
            raise UserError(f"{text}: empty; give at least one value, such as {key}=[1,2]")
        values = ["null" if each is None else each for each in value]
        choices.append([f"{key}={each}" for each in dict.fromkeys(values)])
    return [list(each) for each in product(*choices)]


def is_open(key: str) -> bool:
    """Whether a key may differ between a run and a measurement of it: one of OPEN_KEYS, or inside one."""
    return key in OPEN_KEYS or key.startswith(tuple(each for each in OPEN_KEYS if each.endswith(".")))


def open_run(overrides: list[str], defaults: Keys) -> tuple[Run, Config, Keys]:
    """The run of run=DIR, its configuration under the overrides, and the verb's own keys.

    Raises UserError.
    """
    parsed = parse_overrides(overrides)
    folder = dict(parsed).get("run")
    if not folder:
        raise UserError("run=DIR is missing: the folder that fit printed after 'run:'")
    run = Run.open(Path(str(folder)).expanduser())
    node = typed(OmegaConf.create(asdict(run.config)))
    # A run may be measured on fewer devices than it was trained on.
    node.trainer.devices = node.trainer.nodes = node.trainer.accumulate = 1
    own = OmegaConf.structured(defaults)
    for key, value in parsed:
        if key in own:
            set_key(own, key, value)
        elif is_open(key):
            set_key(node, key, value)
        else:
            known = [*own, *(k for k in flatten(run.config) if is_open(k))]
            raise UserError(f"{key}={value}: not a key of a trained run: {suggest(key, known, 'keys')}")
    keys = to_config(own)  # before the rules, which may read files
    return run, resolve_node(node), keys
