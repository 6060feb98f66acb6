"""Measures the FLOPs per second of this machine for plan calibrate=true."""

import json
from dataclasses import asdict, replace

from eltlab.common.atomic_files import write_atomic
from eltlab.common.errors import UserError
from eltlab.common.file_locks import file_lock
from eltlab.common.machine import Machine
from eltlab.common.text import format_bytes
from eltlab.config.cost.memory import side_by_side
from eltlab.config.cost.rates import rates_file, read_rates, unmeasured_rate
from eltlab.config.schema import Config


def calibrate(configs: list[Config], machine: Machine) -> None:
    """Times steps and passes of these configurations here and keeps their rates. Raises UserError."""
    if machine.name is None:
        raise UserError(
            "calibrate=true: trainer.accelerator=cuda, and there is no GPU here; leave it out"
        )
    different = list({unmeasured_rate(config, machine): config for config in configs}.values())
    needed = side_by_side(different, machine.kind, machine.precision)
    if machine.memory is not None and needed > machine.memory:
        raise UserError(
            f"calibrate=true: its steps take {format_bytes(needed)}, and {machine.name} has "
            f"{format_bytes(machine.memory)}; calibrate a smaller batch_size or model"
        )
    from eltlab.training.timing import rates

    with file_lock(rates_file().with_suffix(".lock")):
        measured = rates(different, machine.kind, machine.precision)
        new = [
            replace(unmeasured_rate(config, machine), train=train, sample=sample)
            for config, (train, sample) in zip(different, measured, strict=True)
        ]
        kept = [rate for rate in read_rates() if not any(rate.has_setup_of(other) for other in new)]
        write_atomic(rates_file(), "".join(json.dumps(asdict(rate)) + "\n" for rate in kept + new))
