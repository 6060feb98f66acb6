"""From the command line to a checked Config, by Hydra's groups and grammar.

Nothing here imports torch: `--help` and mistakes answer at once.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from eltlab.common.errors import UserError, first_line, suggest
from eltlab.common.package_folders import package_folder
from eltlab.common.text import mask_password
from eltlab.config.checks import not_empty
from eltlab.config.extensions import is_extension, load_extension, source_hash
from eltlab.config.flat import leaves
from eltlab.config.rules import BUDGETS
from eltlab.config.schema import Config, EncodeConfig

# Hydra's grammar refuses ~, accents, apostrophes and parentheses in what is just a path.
PLAIN = re.compile(r"[A-Za-z_.]+=[^=,{}\[\]]+")

BUDGET_KEYS = tuple(f"budget.{key}" for key in BUDGETS)


# These say which file of conf/ was chosen: set alone, they would label one thing as another.
CHOSEN = (
    *("model.name", "objective.name", "supervision.name", "data.name", "data.kind"),
    *("trainer.name", "tokenizer.name"),
    *("objective.file", "supervision.file", "objective.source", "supervision.source"),
)


Parsed = list[tuple[str, Any]]  # keys and values of overrides


def compose_node(
    parsed: Parsed, root: str = "config", schema: Config | EncodeConfig | None = None
) -> DictConfig:
    """What was asked for of a root in conf/, its types checked and its rules not."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    groups = groups_of(root)
    extensions = {key: value for key, value in parsed if is_extension(key, value)}
    choices = []
    for key, value in parsed:
        if is_extension(key, value):
            choices.append(f"{key}={_stand_in(key, value)}")
        elif key in groups:
            _check_option(key, value)
            choices.append(f"{key}={value}")
        elif key in CHOSEN:
            group = key.partition(".")[0]
            raise UserError(f"{key}={value}: a choice of a file; write {group}={value}")
    with initialize_config_dir(str(package_folder("conf").resolve()), version_base="1.3"):
        try:
            composed = hydra_compose(root, overrides=choices)
        except HydraException as error:
            raise UserError(f"{' '.join(choices)}: {first_line(error)}") from error
    for group, file in extensions.items():
        path = Path(file).expanduser().resolve()
        composed[group] = {"name": path.stem, "file": str(path), "source": source_hash(path)}
    node = typed(composed, schema)
    if any(key in BUDGET_KEYS and value is not None for key, value in parsed):
        for key in BUDGET_KEYS:  # a budget that is asked for takes the place of the files' own
            set_key(node, key, None)
    for key, value in parsed:
        if key not in groups:
            set_key(node, key, value)
    return node


def parse_overrides(overrides: list[str]) -> Parsed:
    """(key, value) of each ``key=value``, by Hydra's grammar; sweeps and + ~ prefixes are refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parsed: Parsed = []
    for text in overrides:
        said = mask_password(text)  # it may be a mistyped storage=, with a password
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            if PLAIN.fullmatch(text):
                key, _, value = text.partition("=")
                parsed.append((key, value))
                continue
            mend = "quote the value twice, e.g. 'name=\"a (1)\"'" if "=" in text else "e.g. loops=4"
            raise UserError(f"{said!r} is not of the form key=value: {mend}") from error
        if override.is_sweep_override():
            raise UserError(
                f"{said}: one run takes one value; for studies over many: python -m eltlab.sweep"
            )
        if override.type is not OverrideType.CHANGE or override.package is not None:
            raise UserError(f"{said}: keys are fixed; write key=value without + or ~")
        parsed.append((override.key_or_group, override.value()))
    return parsed


def typed(composed: DictConfig, schema: Config | EncodeConfig | None = None) -> DictConfig:
    """The composed tree as a structured Config, so that every later assignment is validated."""
    schema = schema or Config()
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    # A mapping that is one value, not a section of keys.
    match = plain.get("budget", {}).pop("match", None)
    for key, kinds in schema.KINDS.items():
        given = plain.get(key)
        section = given if isinstance(given, dict) else {}
        name, file = section.get("name"), section.get("file")
        if name not in kinds and not file:
            raise UserError(f"{key}.name={name}: choose one of {', '.join(kinds)}")
        kind = load_extension(key, str(file), section.get("source")) if file else kinds[str(name)]
        setattr(schema, key, kind())
    try:
        node = OmegaConf.structured(schema)
    except OmegaConfBaseException as error:  # a field of an extension
        raise UserError(f"a key of an extension: {first_line(error)}") from error
    for top, value in plain.items():
        for dotted, leaf in leaves(str(top), value):
            set_key(node, dotted, leaf)
    if match is not None:
        node.budget.match = match
    return node


def to_config(node: DictConfig) -> Any:
    """The Config or EncodeConfig of a node. Raises UserError for a key without a value."""
    try:
        config = OmegaConf.to_object(node)
    except MissingMandatoryValue as error:  # a field of an extension without a default
        raise UserError(f"{error.full_key}: has no default; give {error.full_key}=VALUE") from error
    not_empty(config)
    return config


def set_key(node: DictConfig, key: str, value: Any) -> None:
    """Assigns one existing key; UserError names the nearest one, or what the type should be."""
    known = _known_keys(node)
    if key not in known:
        if any(name.startswith(key + ".") for name in known):
            raise UserError(f"{key} is a section: set one of its keys, {_section(known, key)}")
        given = mask_password(f"{key}={value}")
        raise UserError(f"unknown key {given}: {suggest(key, known, 'keys')}")
    try:
        OmegaConf.update(node, key, value, merge=False)
    except OmegaConfBaseException as error:
        # OmegaConf's message, which may quote a value of several lines, without where it found it.
        reason = str(error).partition("\n    full_key:")[0]
        raise UserError(f"{key}={value}: {reason}") from error


def _known_keys(node: DictConfig) -> list[str]:
    def walk(prefix: str, inner: Any) -> list[str]:
        if not isinstance(inner, DictConfig) or OmegaConf.get_type(inner) is dict:
            return [prefix]  # a mapping that is one value (budget.match) is no section
        return [
            leaf
            for key in inner
            for leaf in walk(f"{prefix}.{key!s}".lstrip("."), inner._get_node(key))
        ]

    return walk("", node)


def _section(known: list[str], prefix: str) -> str:
    return ", ".join(name for name in known if name.startswith(prefix + "."))


def _stand_in(group: str, file: str) -> str:
    """The option whose sampler and optimizer an extension takes unless others are chosen."""
    kind: Any = load_extension(group, file)
    if group == "supervision":
        return "final"
    return "masked" if kind.INPUTS == "tokens" else "diffusion"


def _check_option(group: str, value: Any) -> None:
    options = options_of(package_folder("conf") / group)
    if value not in options:
        raise UserError(f"{group}={value}: {suggest(str(value), options, 'options')}")


def groups_of(root: str) -> list[str]:
    """The groups of conf/ that a root chooses from, by its defaults list."""
    defaults = OmegaConf.load(package_folder("conf") / f"{root}.yaml").defaults
    named = [str(next(iter(entry))) for entry in defaults if isinstance(entry, DictConfig)]
    return [name.removeprefix("optional ") for name in named]


def options_of(group: Path) -> list[str]:
    """The choices in a folder of conf/; what lies in a folder named base is a part of others."""
    paths = [path.relative_to(group).with_suffix("") for path in group.rglob("*.yaml")]
    return sorted(str(path) for path in paths if path.parent.name != "base")
