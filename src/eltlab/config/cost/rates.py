"""What this machine does in a second: measured by plan calibrate=true, kept in the cache, read by plan.

Reading loads no torch. An entry is of one configuration on one machine; a plan takes the entry of
its own machine and precision whose sizes are the nearest, and says which that was.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

from eltlab.common.cache import cache_dir
from eltlab.common.hashing import digest
from eltlab.common.machine import Machine
from eltlab.common.text import format_si
from eltlab.config.cost.flops import network, params_total
from eltlab.config.schema import Config


@dataclass(frozen=True)
class Rate:
    """FLOPs a second of training steps and of sampling passes, and what they were measured on."""

    machine: str
    precision: str
    inputs: str  # tokens | images
    width: int
    tokens: int
    params: int
    loops: int
    batch: int
    other: str  # a digest of everything else that a step's time depends on
    train: float = 0.0
    sample: float = 0.0

    def distance(self, other: "Rate") -> float:
        """How unlike two entries are: the sum of the logarithms of the ratios of their sizes."""
        sizes = ("width", "tokens", "params", "loops", "batch")
        return sum(abs(math.log(getattr(self, key) / getattr(other, key))) for key in sizes)

    def has_setup_of(self, other: "Rate") -> bool:
        """Whether they are of one configuration on one machine, whatever was measured."""
        return replace(self, train=0.0, sample=0.0) == replace(other, train=0.0, sample=0.0)


def rates_file() -> Path:
    return cache_dir() / "calibration.jsonl"


def read_rates() -> list[Rate]:
    """The entries of the cache; what is none (of another version, torn) is passed over."""
    if not rates_file().is_file():
        return []
    found = []
    for line in rates_file().read_text().splitlines():
        try:
            found.append(Rate(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def unmeasured_rate(config: Config, machine: Machine) -> Rate:
    """What an entry of this configuration would be of, with nothing measured."""
    net, trainer = network(config), config.trainer
    return Rate(
        machine=str(machine.name),
        precision=machine.precision,
        inputs=config.objective.INPUTS,
        width=net.width,
        tokens=net.tokens,
        params=params_total(net),
        loops=config.loops,
        batch=config.micro_batch_size,
        other=digest(net, config.supervision, config.objective, trainer.compile, trainer.recompute),
    )


def find_rate(config: Config, machine: Machine) -> Rate | None:
    """The entry of this configuration, else the nearest of this machine and precision, or None."""
    wanted = unmeasured_rate(config, machine)
    keys = ("machine", "precision", "inputs")
    known = [r for r in read_rates() if all(getattr(r, k) == getattr(wanted, k) for k in keys)]
    return min(
        known, key=lambda rate: (not rate.has_setup_of(wanted), wanted.distance(rate)), default=None
    )


def rate_lines(config: Config, machine: Machine) -> list[str]:
    """Where the times of a plan come from, or how to have some."""
    rate = find_rate(config, machine)
    if rate is None:
        return ["time: calibrate=true measures this machine once"] if machine.name else []
    what = f"{format_si(rate.params)} parameters, width {rate.width}, {rate.tokens} tokens, "
    what += f"batch {rate.batch}"
    if rate.has_setup_of(unmeasured_rate(config, machine)):
        what = "this configuration"
    speed = format_si(rate.train, "FLOP/s")
    return [f"time: at {speed} of training, measured on {rate.machine} with {what}"]
