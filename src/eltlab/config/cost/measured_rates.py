"""How fast this machine is: measured by plan calibrate=true, stored in the cache, and read by plan.

Reading needs no torch. An entry belongs to one configuration on one machine. A plan takes its own
entry, or else the one closest in size with its machine, precision and inputs, and prints which that was.
"""

import json
import math
from collections import namedtuple
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from eltlab.common.disk_cache import cache_dir, digest
from eltlab.common.machine_facts import Machine
from eltlab.common.text import format_si
from eltlab.config.cost.flops import params_total
from eltlab.config.network_shape import network
from eltlab.config.schema import Config

# The numbers of a network that a rate depends on. Its repr is hashed into the entries of the cache, so
# name and order are fixed.
Measured = namedtuple(  # type: ignore[name-match]
    "Network",
    "masked block width heads mlp_width cond_width unique_layers tokens patch_values codes classes loops "
    "dropout prelude coda loop_embedding inject_input exclusive_attention",
)


@dataclass(frozen=True)
class Rate:
    """FLOPs per second of training steps and of sampling passes, and what they were measured on."""

    machine: str
    precision: str
    inputs: str  # tokens | images
    width: int
    tokens: int
    params: int
    loops: int
    batch: int
    other: str  # a digest of everything else that the time of a step depends on
    train: float = 0.0
    sample: float = 0.0

    def distance(self, other: "Rate") -> float:
        """The sum of the absolute logarithms of the ratios of their sizes."""
        sizes = ("width", "tokens", "params", "loops", "batch")
        return sum(abs(math.log(getattr(self, key) / getattr(other, key))) for key in sizes)

    def has_setup_of(self, other: "Rate") -> bool:
        """Whether both belong to the same configuration on the same machine, whatever was measured."""
        return replace(self, train=0.0, sample=0.0) == replace(other, train=0.0, sample=0.0)


def rates_file() -> Path:
    return cache_dir() / "calibration.jsonl"


def read_rates() -> list[Rate]:
    """The entries of the cache. Torn lines, and lines from other versions, are skipped."""
    if not rates_file().is_file():
        return []
    found = []
    for line in rates_file().read_text().splitlines():
        with suppress(ValueError, TypeError):
            found.append(Rate(**json.loads(line)))
    return found


def unmeasured_rate(config: Config, machine: Machine) -> Rate:
    """The entry of this configuration on this machine before anything is measured."""
    net, trainer = network(config), config.trainer
    measured = Measured._make(getattr(net, key) for key in Measured._fields)
    others = (config.supervision, config.objective, trainer.compile, trainer.recompute)
    return Rate(
        machine=str(machine.name),
        precision=machine.precision,
        inputs=config.objective.INPUTS,
        width=net.width,
        tokens=net.tokens,
        params=params_total(net),
        loops=config.loops,
        batch=config.micro_batch_size,
        other=digest(measured, *others),
    )


def find_rate(config: Config, machine: Machine) -> Rate | None:
    """The entry of this configuration, else the closest of its machine, precision and inputs, or None."""
    wanted = unmeasured_rate(config, machine)
    keys = ("machine", "precision", "inputs")
    known = [r for r in read_rates() if all(getattr(r, k) == getattr(wanted, k) for k in keys)]
    return min(known, key=lambda r: (not r.has_setup_of(wanted), wanted.distance(r)), default=None)


def rate_lines(config: Config, machine: Machine) -> list[str]:
    """Where the times of a plan come from, or how to get some."""
    rate = find_rate(config, machine)
    if rate is None:
        return ["time: calibrate=true measures this machine once"] if machine.name else []
    what = (
        f"{format_si(rate.params)} parameters, width {rate.width}, {rate.tokens} tokens, batch {rate.batch}"
    )
    if rate.has_setup_of(unmeasured_rate(config, machine)):
        what = "this configuration"
    return [f"time: at {format_si(rate.train, 'FLOP/s')} of training, measured on {rate.machine} with {what}"]
