"""What a key is allowed to be and what it means, declared next to its field, and the one check of both."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from eltlab.common.errors import UserError


@dataclass(frozen=True)
class Key:
    """The metadata of a field. A plain dataclass field, as in extension files, has none of it."""

    sentence: str = ""
    low: float | None = None  # the smallest value allowed
    high: float | None = None  # the largest value allowed
    above: float | None = None  # the value must be larger than this
    below: float | None = None  # the value must be smaller than this
    choices: tuple[Any, ...] = ()
    from_data: bool = False  # 0 stands for what data.root says
    internal: bool = False  # set by eltlab, not by users: not part of --help
    since: str | None = None  # the version that added it, if runs existed before

    @property
    def limits(self) -> str:
        """The range in words, such as "at least 1" or "in [0, 1)"."""
        if self.high is None and self.below is None:
            return f"at least {self.low}" if self.above is None else f"above {self.above}"
        start = f"[{self.low}" if self.above is None else f"({self.above}"
        return f"in {start}, {self.high}]" if self.below is None else f"in {start}, {self.below})"

    def in_range(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    @property
    def has_limits(self) -> bool:
        return (self.low, self.high, self.above, self.below) != (None,) * 4


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
    """Raises UserError for a value that is empty, not finite, or outside the range or choices of its key.

    filled: whether values of 0 that stand for what data.root says have been replaced.
    """
    for name, declared, value in walk(config):
        if value is None or (declared.from_data and not filled and value == 0):
            continue
        if value == "":
            raise UserError(f"{name}=: empty; give a value, or remove it")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}: must be a finite number")
        if declared.choices and value not in declared.choices:
            raise UserError(
                f"{name}={value}: choose one of {', '.join(map(str, declared.choices))}"
            )
        if declared.has_limits and isinstance(value, list):
            if not all(declared.in_range(each) for each in value):
                raise UserError(f"{name}={value}: each must be {declared.limits}")
        elif declared.has_limits and not declared.in_range(value):
            raise UserError(f"{name}={value}: must be {declared.limits}")


def stable_dict(config: Any) -> dict[str, Any]:
    """`asdict` for hashes: a key with `since` is left out while it has its default value.

    So adding a key changes no hash that was computed before, if the key is declared with `since`.
    """
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        declared = each.metadata.get("key", NO_METADATA)
        if is_dataclass(value):
            inner = stable_dict(value)
            if inner:  # a section that was added later, with every key at its default, is empty
                found[each.name] = inner
        elif declared.since is None or value != _default(each):
            found[each.name] = value
    return found


def _default(each: "dataclasses.Field[Any]") -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default
