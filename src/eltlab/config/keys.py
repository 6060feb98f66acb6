"""Keys: the sentence, range and choices next to a field, their check, and all keys of a configuration."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf

from eltlab.common.errors import UserError


@dataclass(frozen=True)
class Key:
    """The metadata of a field. A plain dataclass field, as in extension files, gets the defaults."""

    sentence: str = ""
    low: float = -math.inf  # the smallest value allowed
    high: float = math.inf  # the largest value allowed
    above: float = -math.inf  # the value must be larger than this
    below: float = math.inf  # the value must be smaller than this
    choices: tuple[Any, ...] = ()
    from_data: bool = False  # 0: read from data.root
    internal: bool = False  # set by eltlab, not by users; --help hides it
    since: str | None = None  # the version that added it, if runs existed before

    @property
    def limits(self) -> str:
        """The range in words, such as "at least 1" or "in [0, 1)". Empty if every number is allowed."""
        if self.high < math.inf or self.below < math.inf:
            end = f"{self.high}]" if self.high < math.inf else f"{self.below})"
            start = f"({self.above}" if self.above > -math.inf else f"[{self.low}"
            return f"in {start}, {end}"
        if self.above > -math.inf:
            return f"above {self.above}"
        return f"at least {self.low}" if self.low > -math.inf else ""

    def in_range(self, value: float) -> bool:
        return self.low <= value <= self.high and self.above < value < self.below


NO_METADATA = Key()


def key(default: Any, sentence: str, **limits: Any) -> Any:
    """A dataclass field with the metadata of `Key`, e.g. ``loops: int = key(4, "loops per pass", low=1)``."""
    metadata = {"key": Key(sentence, **limits)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Key, Any]]:
    """Every key of a dataclass instance: its dotted name, its metadata and its value."""
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from walk(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", each.metadata.get("key", NO_METADATA), value


def check_keys(config: Any, filled: bool = True) -> None:
    """Raises UserError if a value is empty, not finite, or outside the range or choices of its key.

    filled: whether zeros that mean "read from data.root" have been replaced.
    """
    for name, declared, value in walk(config):
        if value is None or (declared.from_data and not filled and value == 0):
            continue
        if value == "":
            raise UserError(f"{name}=: empty; give a value, or remove it")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}: must be a finite number")
        if declared.choices and value not in declared.choices:
            known = ", ".join(map(str, declared.choices))
            raise UserError(f"{name}={value}: choose one of {known}")
        values = value if isinstance(value, list) else [value]
        if declared.limits and not all(map(declared.in_range, values)):
            each = "each " if isinstance(value, list) else ""
            raise UserError(f"{name}={value}: {each}must be {declared.limits}")


def check_divides(key: str, part: int, whole_key: str, whole: int, otherwise: str = "") -> None:
    """Raises UserError unless part divides whole; the message lists the divisors."""
    if whole % part:
        fix = f"choose one of {divisors(whole)}{otherwise}"
        raise UserError(f"{key}={part} does not divide {whole_key}={whole}; {fix}")


def divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def stable_dict(config: Any) -> dict[str, Any]:
    """`asdict` for hashes, without the keys with `since` that have their default value.

    A new key that is declared with `since` therefore changes no existing hash.
    """
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        declared = each.metadata.get("key", NO_METADATA)
        if is_dataclass(value):
            if inner := stable_dict(value):  # empty if all keys have `since` and their defaults
                found[each.name] = inner
        elif declared.since is None or value != each.default:
            found[each.name] = value
    return found


def flatten(config: Any) -> dict[str, Any]:
    """Dotted keys to plain values, in order. config: a dataclass, or its mapping."""
    plain = config if isinstance(config, dict) else asdict(config)
    return {k: v for section, value in plain.items() for k, v in leaves(section, value)}


def leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(f"{prefix}.{key}", inner)]
    return [(prefix, value)]


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML, the form that `load_config` reads."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
