"""Measures the FLOPs per second of this machine, for plan calibrate=true."""

import json
from dataclasses import asdict, replace

from eltlab.common.errors import UserError
from eltlab.common.files import file_lock, write_atomic
from eltlab.common.machine_facts import Machine
from eltlab.config.cost.measured_rates import rates_file, read_rates, unmeasured_rate
from eltlab.config.schema import Config
from eltlab.training.benchmark_configs import check_memory


def calibrate(configs: list[Config], machine: Machine) -> None:
    """Times training steps and passes of these configurations and stores their rates. Raises UserError."""
    if machine.name is None:
        raise UserError(
            "calibrate=true: trainer.accelerator=cuda, but there is no GPU here; remove calibrate"
        )
    # Configurations that share an entry of the file are timed once.
    different = list({unmeasured_rate(config, machine): config for config in configs}.values())
    check_memory(different, machine, "calibrate=true: its steps", "calibrate a smaller batch_size or model")
    from eltlab.training.timing import measure_rates  # imports torch

    with file_lock(rates_file().with_suffix(".lock")):  # two timings at once would slow each other
        rates = measure_rates(different, machine.kind, machine.precision)
        new = [
            replace(unmeasured_rate(config, machine), train=train, sample=sample)
            for config, (train, sample) in zip(different, rates, strict=True)
        ]
        kept = [rate for rate in read_rates() if not any(rate.has_setup_of(other) for other in new)]
        write_atomic(rates_file(), "".join(json.dumps(asdict(rate)) + "\n" for rate in kept + new))
