"""Makes checked configurations from overrides or a stored config.yaml, and the data on disk."""

import copy
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eltlab.common.errors import UserError, first_line
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.twins import twin
from eltlab.config.encode_rules import check_effect, check_tokenizer, resolve_encode
from eltlab.config.keys import flatten
from eltlab.config.parsing import (
    Parsed,
    choose_options,
    compose_node,
    groups_of,
    parse_overrides,
    set_keys,
    to_config,
    typed,
)
from eltlab.config.rules import check_one_budget, resolve
from eltlab.config.run_name import run_name
from eltlab.config.schema import Config, EncodeConfig
from eltlab.data.fill_from_files import fill_from_files
from eltlab.runs.old_runs import is_old, translate


def compose(overrides: list[str]) -> Config:
    """The checked configuration of these Hydra overrides, e.g. ``["model=elt_b", "loops=12"]``.
    Raises UserError for an unknown key or option, a value of the wrong type, or a broken rule."""
    return compose_parsed(parse_overrides(overrides))


def compose_parsed(parsed: Parsed) -> Config:
    """`compose` for parsed keys and values."""
    groups = groups_of("config")
    node = choose_options(parsed, groups)
    defaults = OmegaConf.to_container(node)
    set_keys(node, parsed, groups)
    if node.budget.match is not None:
        check_one_budget(node.budget)
        match = OmegaConf.to_container(node.budget).get("match")  # type: ignore[union-attr]
        node.budget.match, node.budget.train_flops = None, matched_flops(match, parsed)
    requested = read_node(node)
    config = resolve(copy.deepcopy(requested))
    if requested.name is None:
        config.name = run_name(config, requested, dict(parsed), flatten(defaults))
    return config


def resolve_node(node: DictConfig) -> Config:
    """The checked configuration of a node, with the sizes and classes of its data. Raises UserError."""
    return resolve(read_node(node))


def read_node(node: DictConfig) -> Any:
    """The configuration of a node with what the files of its data decide, before `resolve`."""
    config = to_config(node)
    fill_from_files(config.data)
    return config


def compose_encode(overrides: list[str]) -> EncodeConfig:
    """`compose` for the keys of encode, whose root is conf/encode.yaml."""
    parsed = parse_overrides(overrides)
    check_effect(key for key, value in parsed if value is not None)
    config = to_config(compose_node(parsed, "encode"))
    if config.data.kind != "pixels":
        raise UserError(f"data={config.data.name}: encoded already; choose data=images")
    check_tokenizer(config.tokenizer)
    fill_from_files(config.data)
    return resolve_encode(config)


def matched_flops(match: Any, parsed: Parsed) -> float:
    """The training FLOPs of the run that budget.match names. Raises UserError.

    match: the folder of a run; or "twin", the unique-layer twin; or keys in which that run differs from
    this one. The last two have the budget that they would have without the match.
    """
    # The run that is costed needs no name, so none is worked out.
    rest = [*((k, v) for k, v in parsed if k != "budget.match"), ("budget.match", None), ("name", "match")]
    if isinstance(match, dict) and match:
        return budget_flops(compose_parsed([*rest, *((str(key), match[key]) for key in match)]))
    if match == "twin":
        return budget_flops(twin(compose_parsed(rest)))
    path = Path(str(match)).expanduser()
    file = path if path.name == "config.yaml" else path / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"budget.match={match}: no run there (no config.yaml); give the folder that fit printed "
            "after 'run:', or twin, or keys of this configuration such as {loops:1}"
        )
    return budget_flops(load_config(file))


def load_config(path: Path) -> Config:
    """The Config in a run's config.yaml. Raises UserError if the file is not one."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not the configuration of a run: {first_line(error)}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> Config:
    """The Config that `to_yaml` wrote into the file at path. Raises UserError."""
    try:
        loaded = OmegaConf.create(text)
        if not isinstance(loaded, DictConfig):
            raise UserError("not a mapping of keys to values")
        plain: Any = OmegaConf.to_container(loaded)
        if is_old(plain):
            loaded = OmegaConf.create(translate(plain))
        return resolve_node(typed(loaded))
    except (YAMLError, UserError, OmegaConfBaseException) as error:
        raise UserError(f"{path} is not the configuration of a run: {first_line(error)}") from error
