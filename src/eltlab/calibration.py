"""What this machine does in a second: measured by plan calibrate=true, kept in the cache, read by plan.

Reading loads no torch. An entry is of one configuration on one machine; a plan takes the entry of
its own machine and precision whose sizes are the nearest, and says which that was.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eltlab.compute import network, params_total
from eltlab.config import Config
from eltlab.errors import UserError
from eltlab.files import cache_dir, locked, write_atomic
from eltlab.machine import Machine
from eltlab.memory import training_memory
from eltlab.text import binary, si


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
    train: float
    sample: float

    def far(self, other: "Rate") -> float:
        """How unlike two entries are: the sum of the logarithms of the ratios of their sizes."""
        sizes = ("width", "tokens", "params", "loops", "batch")
        return sum(abs(math.log(getattr(self, key) / getattr(other, key))) for key in sizes)


def path() -> Path:
    return cache_dir() / "calibration.jsonl"


def entries() -> list[Rate]:
    if not path().is_file():
        return []
    return [Rate(**json.loads(line)) for line in path().read_text().splitlines()]


def entry_of(config: Config, machine: Machine, train: float = 0.0, sample: float = 0.0) -> Rate:
    net = network(config)
    return Rate(
        machine=str(machine.name),
        precision=machine.precision,
        inputs=config.objective.INPUTS,
        width=net.width,
        tokens=net.tokens,
        params=params_total(net),
        loops=config.loops,
        batch=config.batch_size,
        train=train,
        sample=sample,
    )


def rate_of(config: Config, machine: Machine) -> Rate | None:
    """The nearest entry of this machine and precision, or None."""
    wanted = entry_of(config, machine)

    def kind(rate: Rate) -> tuple[str, str, str]:
        return rate.machine, rate.precision, rate.inputs

    known = [rate for rate in entries() if kind(rate) == kind(wanted)]
    return min(known, key=wanted.far, default=None)


def note(config: Config, machine: Machine) -> list[str]:
    """Where the times of a plan come from, or how to have some."""
    rate = rate_of(config, machine)
    if rate is None:
        return ["time: calibrate=true measures this machine once"] if machine.name else []
    what = (
        "this configuration"
        if rate.far(entry_of(config, machine)) == 0
        else (
            f"{si(rate.params)} parameters, width {rate.width}, {rate.tokens} tokens, batch {rate.batch}"
        )
    )
    return [
        f"time: at {si(rate.train, 'FLOP/s')} of training, measured on {rate.machine} with {what}"
    ]


def calibrate(configs: list[Config], machine: Machine) -> None:
    """Times steps and passes of these configurations here and keeps their rates. Raises UserError."""
    if machine.name is None:
        raise UserError(
            "calibrate=true: trainer.accelerator=cuda, and there is no GPU here; leave it out"
        )
    for config in configs:
        needed = training_memory(config, machine.kind, machine.precision).total
        if machine.memory is not None and needed > machine.memory:
            raise UserError(
                f"calibrate=true: a step takes {binary(needed)}, and {machine.name} has "
                f"{binary(machine.memory)}; calibrate a smaller batch_size or model"
            )
    from eltlab.timing import rates

    different = {entry_of(config, machine): config for config in configs}.values()
    with locked(path().with_suffix(".lock")):
        new = [entry_of(c, machine, *rates(c, machine.kind, machine.precision)) for c in different]
        kept = [rate for rate in entries() if not any(same(rate, other) for other in new)]
        write_atomic(path(), "".join(json.dumps(asdict(rate)) + "\n" for rate in kept + new))


def same(rate: Rate, other: Rate) -> bool:
    """Whether they are of the same thing, whatever was measured."""
    return replace(rate, train=0.0, sample=0.0) == replace(other, train=0.0, sample=0.0)
