"""From overrides or a stored config.yaml to a checked configuration, with what the data on disk decide."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from eltlab.common.errors import UserError, first_line
from eltlab.config.cost.flops import budget_flops
from eltlab.config.cost.twins import twin
from eltlab.config.encode_rules import check_encodable, refuse_idle, resolve_encode
from eltlab.config.parsing import Parsed, compose_node, parse_overrides, to_config, typed
from eltlab.config.rules import one_budget, resolve
from eltlab.config.schema import Config, EncodeConfig
from eltlab.data.fill_from_files import fill_from_files


def compose(overrides: list[str]) -> Config:
    """The checked configuration of these Hydra overrides, e.g. ``["model=elt_b", "loops=12"]``.

    Raises UserError for an unknown key or option, a value of the wrong type, or a broken rule.
    """
    return compose_parsed(parse_overrides(overrides))


def compose_parsed(parsed: Parsed) -> Config:
    """`compose` for keys and values that are parsed already."""
    node = compose_node(parsed)
    if node.budget.match is not None:
        one_budget(node.budget)
        match = OmegaConf.to_container(node.budget).get("match")  # type: ignore[union-attr]
        node.budget.match, node.budget.train_flops = None, matched_flops(match, parsed)
    return resolve_node(node)


def resolve_node(node: DictConfig) -> Config:
    """The checked configuration of a node, with what its data on disk decide. Raises UserError."""
    config = to_config(node)
    fill_from_files(config.data)
    return resolve(config)


def compose_encode(overrides: list[str]) -> EncodeConfig:
    """`compose` for the keys of encode, whose root is conf/encode.yaml."""
    parsed = parse_overrides(overrides)
    refuse_idle(key for key, value in parsed if value is not None)
    config = to_config(compose_node(parsed, "encode", EncodeConfig()))
    check_encodable(config)
    fill_from_files(config.data)
    return resolve_encode(config)


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
        return resolve_node(typed(loaded))
    except (YAMLError, UserError, OmegaConfBaseException) as error:
        raise UserError(
            f"{where} is not the configuration of a run: {first_line(error)}"
        ) from error
