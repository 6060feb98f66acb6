"""From the command line to a typed Config, by Hydra's groups and grammar."""

import copy
import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eltlab.common.errors import UserError, first_line, suggest
from eltlab.common.package_info import package_folder
from eltlab.common.text import mask_password
from eltlab.config.extensions import is_extension, load_extension, source_hash
from eltlab.config.keys import check_keys, leaves
from eltlab.config.rules import BUDGETS
from eltlab.config.schema import Config, EncodeConfig

# Hydra's grammar refuses ~, accents, apostrophes and parentheses, which paths may contain.
PLAIN = re.compile(r"[A-Za-z_.]+=[^=,{}\[\]]+")

BUDGET_KEYS = tuple(f"budget.{key}" for key in BUDGETS)

Parsed = list[tuple[str, Any]]  # keys and values of overrides


def is_set_by_group(key: str) -> bool:
    """Whether a key says which file of conf/ was chosen: set alone, it would put a wrong label on a run."""
    section, _, name = key.rpartition(".")
    return section not in ("", "sampler") and name in ("name", "kind", "file", "source")


def compose_node(
    parsed: Parsed, root: str = "config", schema: Config | EncodeConfig | None = None
) -> DictConfig:
    """The configuration of a root in conf/ under overrides: its types are checked, its rules are not."""
    groups = groups_of(root)
    return set_keys(choose_options(parsed, groups, root, schema), parsed, groups)


def choose_options(
    parsed: Parsed, groups: Sequence[str], root: str = "config", schema: Config | EncodeConfig | None = None
) -> DictConfig:
    """The configuration of the options that overrides choose, before their other keys are set."""
    extensions = {key: value for key, value in parsed if is_extension(key, value)}
    choices = []
    for key, value in parsed:
        if is_extension(key, value):
            # The option whose sampler and optimizer the extension uses unless they are chosen.
            kind: Any = load_extension(key, value)
            stand_in = "final"
            if key == "objective":
                stand_in = "masked" if kind.INPUTS == "tokens" else "diffusion"
            choices.append(f"{key}={stand_in}")
        elif key in groups:
            options = options_of(package_folder("conf") / key)
            if value not in options:
                raise UserError(f"{key}={value}: {suggest(str(value), options, 'options')}")
            choices.append(f"{key}={value}")
        elif is_set_by_group(key):
            group = key.partition(".")[0]
            raise UserError(f"{key}={value}: chosen by its group; write {group}={value}")
    if not extensions and schema is None:
        return copy.deepcopy(typed_choices(root, tuple(choices), conf_state()))
    composed = copy.deepcopy(compose_choices(root, tuple(choices), conf_state()))
    for group, file in extensions.items():
        path = Path(file).expanduser().resolve()
        composed[group] = {"name": path.stem, "file": str(path), "source": source_hash(path)}
    return typed(composed, schema)


def set_keys(node: DictConfig, parsed: Parsed, groups: Sequence[str]) -> DictConfig:
    """Sets the keys of overrides that choose no option of a group, in place; returns the node."""
    if any(key in BUDGET_KEYS and value is not None for key, value in parsed):
        for key in BUDGET_KEYS:  # a requested budget replaces the one of the files
            set_key(node, key, None)
    known = _known_keys(node)
    for key, value in parsed:
        if key not in groups:
            set_key(node, key, value, groups, known)
    return node


def conf_state() -> tuple[tuple[Path, int], ...]:
    """The files of conf/ and when each was last modified."""
    return tuple((path, path.stat().st_mtime_ns) for path in sorted(package_folder("conf").rglob("*.yaml")))


@lru_cache(maxsize=256)
def compose_choices(root: str, choices: tuple[str, ...], conf: tuple[tuple[Path, int], ...]) -> DictConfig:
    """Hydra's composition of a root of conf/ and one option per group. Not to be changed: it is cached, as
    the trials of a study make few choices. conf: the state of the files, so that an edit is read."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    with initialize_config_dir(str(package_folder("conf").resolve()), version_base="1.3"):
        try:
            return hydra_compose(root, overrides=list(choices))
        except HydraException as error:
            raise UserError(f"{' '.join(choices)}: {first_line(error)}") from error


@lru_cache(maxsize=256)
def typed_choices(root: str, choices: tuple[str, ...], conf: tuple[tuple[Path, int], ...]) -> DictConfig:
    """`compose_choices` with types. Not to be changed either: building the schema is most of the time."""
    return typed(compose_choices(root, choices, conf), EncodeConfig() if root == "encode" else None)


def parse_overrides(overrides: list[str]) -> Parsed:
    """(key, value) of each ``key=value``, by Hydra's grammar. Raises UserError for sweeps, + and ~."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parsed: Parsed = []
    for text in overrides:
        shown = mask_password(text)  # it may be a mistyped storage=, with a password
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            if PLAIN.fullmatch(text):
                key, _, value = text.partition("=")
                parsed.append((key, value))
                continue
            fix = "quote the value twice, e.g. 'name=\"a (1)\"'" if "=" in text else "e.g. loops=4"
            raise UserError(f"{shown!r} is not of the form key=value: {fix}") from error
        if override.is_sweep_override():
            raise UserError(
                f"{shown}: one run takes one value; for studies over many: python -m eltlab.sweep"
            )
        if override.type is not OverrideType.CHANGE or override.package is not None:
            raise UserError(f"{shown}: keys are fixed; write key=value without + or ~")
        parsed.append((override.key_or_group, override.value()))
    return parsed


def typed(composed: DictConfig, schema: Config | EncodeConfig | None = None) -> DictConfig:
    """The composed tree as a structured Config, so that every later assignment is validated."""
    schema = schema or Config()
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    # budget.match may be a mapping, which is one value and not a section of keys.
    match = plain.get("budget", {}).pop("match", None)
    for key, kinds in schema.KINDS.items():
        section = given if isinstance(given := plain.get(key), dict) else {}
        name, file = section.get("name"), section.get("file")
        if name not in kinds and not file:
            raise UserError(f"{key}.name={name}: choose one of {', '.join(kinds)}")
        kind = load_extension(key, str(file), section.get("source")) if file else kinds[str(name)]
        setattr(schema, key, kind())
    try:
        node = OmegaConf.structured(schema)
    except OmegaConfBaseException as error:  # a field of an extension
        raise UserError(f"a key of an extension: {first_line(error)}") from error
    known = _known_keys(node)
    for top, value in plain.items():
        for dotted, leaf in leaves(str(top), value):
            set_key(node, dotted, leaf, known=known)
    if match is not None:
        node.budget.match = match
    return node


def to_config(node: DictConfig) -> Any:
    """The dataclass of a node, with every key checked on its own. Raises UserError."""
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:  # a field of an extension without a default
        raise UserError(f"{error.full_key}: has no default; give {error.full_key}=VALUE") from error
    check_keys(config, filled=False)
    return config


def set_key(
    node: DictConfig, key: str, value: Any, groups: Sequence[str] = (), known: Sequence[str] | None = None
) -> None:
    """Assigns one existing key. Raises UserError, which suggests a key or says what the type should be.

    known: the keys of the node, from a caller that sets many.
    """
    known = known or _known_keys(node)
    if key not in known:
        inside = [name for name in known if name.startswith(key + ".")]
        if inside:
            raise UserError(f"{key} is a section: set one of its keys, {', '.join(inside)}")
        given = mask_password(f"{key}={value}")
        raise UserError(f"unknown key {given}: {suggest_key(key, known, groups)}")
    try:
        OmegaConf.update(node, key, value, merge=False)
    except OmegaConfBaseException as error:
        # OmegaConf's message without its second part, where it found the value. The value may have several
        # lines, so it is not cut at the first line.
        reason = str(error).partition("\n    full_key:")[0]
        raise UserError(f"{key}={value}: {reason}") from error


def suggest_key(key: str, known: Sequence[str], groups: Sequence[str] = ()) -> str:
    """ "did you mean …?": a key with this last name, e.g. optim.lr for lr, or the nearest group or key."""
    section, _, name = key.rpartition(".")
    for choice, kind in Config.KINDS.get(section, {}).items():
        if name in {each.name for each in fields(kind)}:
            return f"only {section}={choice} has it"
    known = [each for each in known if not is_set_by_group(each)]
    found = [each for each in known if each.rpartition(".")[2] == key]
    if not found:
        candidates = known if section else [*groups, *known]
        names = {each.rpartition(".")[2]: each for each in reversed(known)}
        whole = difflib.get_close_matches(key, candidates, n=1, cutoff=0.6)
        last = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
        found = whole or [names[each] for each in last]
    return f"did you mean {' or '.join(found)}?" if found else "--help lists every key"


def _known_keys(node: Any, prefix: str = "") -> list[str]:
    if not isinstance(node, DictConfig) or OmegaConf.get_type(node) is dict:
        return [prefix]  # a mapping that is one value (budget.match) is no section
    inner = [(node._get_node(key), f"{prefix}.{key!s}".lstrip(".")) for key in node]
    return [key for value, name in inner for key in _known_keys(value, name)]


def groups_of(root: str) -> list[str]:
    """The groups of conf/ that a root chooses from, by its defaults list."""
    path = package_folder("conf") / f"{root}.yaml"
    return read_groups(path, path.stat().st_mtime_ns)


@lru_cache
def read_groups(path: Path, modified: int) -> list[str]:
    """modified: when the file was, so that an edit is read."""
    defaults = OmegaConf.load(path).defaults
    named = [str(next(iter(entry))) for entry in defaults if isinstance(entry, DictConfig)]
    return [name.removeprefix("optional ") for name in named]


def options_of(group: Path) -> list[str]:
    """The choices in a folder of conf/. The files in a folder named base are parts of other files."""
    paths = [path.relative_to(group).with_suffix("") for path in group.rglob("*.yaml")]
    return sorted(str(path) for path in paths if path.parent.name != "base")
