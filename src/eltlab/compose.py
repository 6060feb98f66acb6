"""From the command line to a checked Config, by Hydra's groups and grammar.

Nothing here imports torch: `--help` and mistakes answer at once.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eltlab.compute import budget_flops
from eltlab.config import Config, EncodeConfig, folder, leaves
from eltlab.encode_rules import refuse_idle, resolve_encode
from eltlab.errors import UserError, first_line, nearest
from eltlab.extend import is_extension, load_extension, source_hash
from eltlab.rules import BUDGETS, one_budget, resolve
from eltlab.text import shown
from eltlab.twins import twin

# Hydra's grammar refuses ~, accents, apostrophes and parentheses in what is just a path.
PLAIN = re.compile(r"[A-Za-z_.]+=[^=,{}\[\]]+")

BUDGET_KEYS = tuple(f"budget.{key}" for key in BUDGETS)

# These say which file of conf/ was chosen: set alone, they would label one thing as another.
CHOSEN = (
    *("model.name", "objective.name", "supervision.name", "data.name", "data.kind"),
    *("trainer.name", "tokenizer.name"),
    *("objective.file", "supervision.file", "objective.source", "supervision.source"),
)


def compose(overrides: list[str]) -> Config:
    """The checked configuration of these Hydra overrides, e.g. ``["model=elt_b", "loops=12"]``.

    Raises UserError for an unknown key or option, a value of the wrong type, or a broken rule.
    """
    return compose_parsed(parse_overrides(overrides))


Parsed = list[tuple[str, Any]]  # keys and values of overrides


def compose_parsed(parsed: Parsed) -> Config:
    """`compose` for keys and values that are parsed already."""
    node = compose_node(parsed)
    if node.budget.match is not None:
        one_budget(node.budget)
        match = OmegaConf.to_container(node.budget).get("match")  # type: ignore[union-attr]
        node.budget.match, node.budget.train_flops = None, matched_flops(match, parsed)
    return resolve(node)


def compose_encode(overrides: list[str]) -> EncodeConfig:
    """`compose` for the keys of encode, whose root is conf/encode.yaml."""
    parsed = parse_overrides(overrides)
    refuse_idle(key for key, value in parsed if value is not None)
    return resolve_encode(compose_node(parsed, "encode", EncodeConfig()))


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
    with initialize_config_dir(str(folder("conf").resolve()), version_base="1.3"):
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


def matched_flops(match: Any, parsed: Parsed) -> float:
    """The training FLOPs of what budget.match names. Raises UserError.

    A path is a run, to the end of its budget. A mapping is this configuration with these keys, and
    twin its unique-layer twin, each under the budget that it has without the match.
    """
    others = [*((k, v) for k, v in parsed if k != "budget.match"), ("budget.match", None)]
    if isinstance(match, dict) and match:
        return budget_flops(compose_parsed([*others, *((str(key), match[key]) for key in match)]))
    if match == "twin":
        return budget_flops(twin(compose_parsed(others)))
    path = Path(str(match)).expanduser()
    file = path if path.name == "config.yaml" else path / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"budget.match={match}: no run there (no config.yaml); give the folder that fit printed "
            "after 'run:', or twin, or keys of this configuration such as {loops:1}"
        )
    return budget_flops(load_config(file))


def parse_overrides(overrides: list[str]) -> Parsed:
    """(key, value) of each ``key=value``, by Hydra's grammar; sweeps and + ~ prefixes are refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parsed: Parsed = []
    for text in overrides:
        said = shown(text)  # it may be a mistyped storage=, with a password
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


def set_key(node: DictConfig, key: str, value: Any) -> None:
    """Assigns one existing key; UserError names the nearest one, or what the type should be."""
    known = _known_keys(node)
    if key not in known:
        if any(name.startswith(key + ".") for name in known):
            raise UserError(f"{key} is a section: set one of its keys, {_section(known, key)}")
        given = shown(f"{key}={value}")
        raise UserError(f"unknown key {given}: {nearest(key, known, 'keys')}")
    try:
        OmegaConf.update(node, key, value, merge=False)
    except OmegaConfBaseException as error:
        # OmegaConf's message, which may quote a value of several lines, without where it found it.
        reason = str(error).partition("\n    full_key:")[0]
        raise UserError(f"{key}={value}: {reason}") from error


def load_config(path: Path) -> Config:
    """The Config that a run wrote. Raises UserError where the file is not one."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not the configuration of a run: {first_line(error)}") from error
    return parse_config(text, path)


def parse_config(text: str, where: Path) -> Config:
    """The Config that `to_yaml` wrote out. Raises UserError, naming the file that it came from."""
    try:
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise UserError("not a mapping of keys to values")
        return resolve(typed(loaded))
    except (YAMLError, UserError, OmegaConfBaseException) as error:
        raise UserError(
            f"{where} is not the configuration of a run: {first_line(error)}"
        ) from error


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
    options = options_of(folder("conf") / group)
    if value not in options:
        raise UserError(f"{group}={value}: {nearest(str(value), options, 'options')}")


def groups_of(root: str) -> list[str]:
    """The groups of conf/ that a root chooses from, by its defaults list."""
    defaults = OmegaConf.load(folder("conf") / f"{root}.yaml").defaults
    named = [str(next(iter(entry))) for entry in defaults if isinstance(entry, DictConfig)]
    return [name.removeprefix("optional ") for name in named]


def options_of(group: Path) -> list[str]:
    """The choices in a folder of conf/; what lies in a folder named base is a part of others."""
    paths = [path.relative_to(group).with_suffix("") for path in group.rglob("*.yaml")]
    return sorted(str(path) for path in paths if path.parent.name != "base")
