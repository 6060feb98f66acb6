"""The text of --help: a verb's docstring, and its keys with their defaults, sentences, ranges and choices."""

import textwrap
from collections.abc import Container
from functools import reduce
from itertools import groupby
from operator import getitem
from typing import Any

from omegaconf import MISSING, OmegaConf

from eltlab.common.package_info import package_folder
from eltlab.common.text import mask_password
from eltlab.config.keys import Key, walk
from eltlab.config.parsing import compose_node, groups_of, is_set_by_group, options_of, parse_overrides
from eltlab.config.schema import Config, EncodeConfig

WIDTH = 108
MAX_COLUMN = 38  # longer keys have their sentence on the next line
CHOICES = "(of other choices: objective=diffusion supervision=deep --help)"


def help_text(doc: str | None, *blocks: str) -> str:
    """The docstring of a verb with these blocks in front of its examples."""
    before, title, examples = str(doc).strip().partition("examples:\n")
    return "\n\n".join(filter(None, [before.strip(), *blocks, title + examples]))


def key_help(keys: Any) -> str:
    """The keys of a verb, from an instance of their dataclass."""
    return _table([each for each in walk(keys) if not each[1].internal])


def config_help(overrides: list[str], root: str = "config", hidden: Container[str] = ()) -> str:
    """Choices and keys of a root in conf/ under overrides, a paragraph per section. Raises UserError."""
    schema: Config | EncodeConfig = Config() if root == "config" else EncodeConfig()
    # compose_node also sets the sections of schema to the classes of the chosen files.
    values: Any = OmegaConf.to_container(compose_node(parse_overrides(overrides), root, schema))
    found = [
        (name, declared, reduce(getitem, name.split("."), values))
        for name, declared, _ in walk(schema)
        if not (declared.internal or is_set_by_group(name) or name in hidden)
    ]
    found.sort(key=lambda each: "." in each[0])  # the keys outside sections first
    sections = groupby(found, lambda each: each[0].partition(".")[0] if "." in each[0] else "")
    title = "keys and their defaults" + (f" {CHOICES}:" if root == "config" else ":")
    return "\n\n".join([choice_help(root), title, *(_table(list(keys)) for _, keys in sections)])


def choice_help(root: str = "config") -> str:
    """The choices of every group of a root in conf/, one line per group."""
    folder = package_folder("conf")
    lines = [f"  {group}={{{', '.join(options_of(folder / group))}}}" for group in groups_of(root)]
    return "\n".join(["choices:", *sorted(lines)])


def _table(keys: list[tuple[str, Key, Any]]) -> str:
    heads = [f"  {name}={_format(declared, value)}" for name, declared, value in keys]
    column = min(max(map(len, heads), default=0) + 2, MAX_COLUMN)
    lines = []
    for head, (_, declared, _) in zip(heads, keys, strict=True):
        limits = " | ".join(map(str, declared.choices)) or declared.limits
        sentence = f"{declared.sentence} ({limits})" if limits else declared.sentence
        text = textwrap.indent(textwrap.fill(sentence, WIDTH - column), " " * column)
        fits = len(head) + 2 <= column
        lines.append((head + text[len(head) :] if fits else f"{head}\n{text}").rstrip())
    return "\n".join(lines)


def _format(declared: Key, value: Any) -> str:
    """A value as it is written on the command line, or nothing for a required key."""
    if value == MISSING or declared.sentence.endswith("(required)"):
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return mask_password(str(value))  # the value of storage= may contain one
