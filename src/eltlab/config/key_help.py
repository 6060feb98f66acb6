"""The text of --help: a verb's docstring, and its keys with their defaults, sentences, ranges and choices."""

import textwrap
from collections.abc import Container
from itertools import groupby
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from eltlab.common.package import package_folder
from eltlab.common.text import mask_password
from eltlab.config.keys import Key, walk
from eltlab.config.parsing import (
    compose_node,
    groups_of,
    is_set_by_group,
    options_of,
    parse_overrides,
)
from eltlab.config.schema import Config, EncodeConfig

WIDTH = 108
MAX_COLUMN = 38  # longer keys have their sentence on the next line


def help_text(doc: str | None, *blocks: str) -> str:
    """The docstring of a verb with these blocks in front of its examples."""
    before, title, examples = str(doc).strip().partition("examples:\n")
    return "\n\n".join(filter(None, [before.strip(), *blocks, title + examples]))


def key_help(keys: Any) -> str:
    """The keys of a verb, from an instance of their dataclass."""
    return "\n".join(_entries([(n, k, v) for n, k, v in walk(keys) if not k.internal]))


def config_help(overrides: list[str], root: str = "config", hidden: Container[str] = ()) -> str:
    """Choices and keys of a root in conf/ under overrides, a paragraph per section. Raises UserError."""
    schema: Config | EncodeConfig = Config() if root == "config" else EncodeConfig()
    node = compose_node(parse_overrides(overrides), root, schema)
    found = [
        (name, declared, _value(node, name))
        for name, declared, _ in walk(schema)
        if not (declared.internal or is_set_by_group(name) or name in hidden)
    ]
    found.sort(key=lambda each: "." in each[0])  # the keys outside sections first
    sections = [list(each) for _, each in groupby(found, key=lambda each: _section(each[0]))]
    paragraphs = ["\n".join(_entries(section)) for section in sections]
    title = (
        "keys and their defaults (of other choices: objective=diffusion supervision=deep --help)"
    )
    title = title if root == "config" else "keys and their defaults"
    return "\n\n".join([choice_help(root), f"{title}:", *paragraphs])


def choice_help(root: str = "config") -> str:
    """The choices of every group of a root in conf/, one line per group."""
    folder = package_folder("conf")
    lines = [f"  {group}={{{', '.join(options_of(folder / group))}}}" for group in groups_of(root)]
    return "\n".join(["choices:", *sorted(lines)])


def _section(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


def _value(node: DictConfig, name: str) -> Any:
    value: Any = OmegaConf.to_container(node, throw_on_missing=False)
    for part in name.split("."):
        value = value[part]
    return value


def _entries(keys: list[tuple[str, Key, Any]]) -> list[str]:
    heads = [f"  {name}={_shown(declared, value)}" for name, declared, value in keys]
    column = min(max(map(len, heads), default=0) + 2, MAX_COLUMN)
    lines = []
    for head, (_, declared, _) in zip(heads, keys, strict=True):
        indent = " " * column
        text = textwrap.fill(
            _sentence(declared), WIDTH, initial_indent=indent, subsequent_indent=indent
        )
        separate = len(head) + 2 > column
        lines.append(
            f"{head}\n{text}".rstrip() if separate else f"{head:<{column}}{text.lstrip()}".rstrip()
        )
    return lines


def _sentence(declared: Key) -> str:
    """The sentence of a key, with its choices or its range."""
    limits = " | ".join(map(str, declared.choices)) or (
        declared.limits if declared.has_limits else ""
    )
    return f"{declared.sentence} ({limits})" if limits else declared.sentence


def _shown(declared: Key, value: Any) -> str:
    """A value as it is written on the command line; nothing for a key that the user has to set."""
    if value == MISSING or declared.sentence.endswith("(required)"):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return mask_password(str(value))  # storage= may hold one
