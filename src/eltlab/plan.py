"""python -m eltlab.plan [overrides]: what fit with these overrides costs, beside its twins."""

import json
import math
from dataclasses import dataclass

from eltlab.cli import options, own_keys
from eltlab.common.command import run_command
from eltlab.common.errors import UserError
from eltlab.common.machine import find_machine
from eltlab.config.cost.bill_table import (
    bill_lines,
    halting_lines,
    memory_lines,
    split_lines,
    timed_bill,
    with_twins,
)
from eltlab.config.parsing import compose_node, parse_overrides
from eltlab.runs.composing import compose
from eltlab.training.calibration import calibrate

GIB = 2**30


@dataclass
class Asked:
    format: str = "text"
    calibrate: bool = False
    memory: float | None = None


def usage() -> str:
    return (
        f"{__doc__}\n\n"
        "Takes exactly fit's overrides, needs neither data nor weights, and loads no torch. Beside the\n"
        "configuration: the unique-layer model of equal compute and the one of equal size. MACs are\n"
        "multiply-adds; 1 MAC = 2 FLOPs. And its own keys:\n\n"
        "  format=json       one JSON object on stdout, and nothing else\n"
        "  calibrate=true    times a few steps and passes here first; later plans then show times\n"
        "  memory=80         GiB of the device it is to fit; default: that of this machine\n\n"
        f"choices:\n{options()}\n\n"
        "examples:\n"
        "  python -m eltlab.plan model=elt_b loops=12\n"
        "  python -m eltlab.plan experiment=paper/dit_32 trainer.accelerator=cuda memory=80\n"
        "  python -m eltlab.plan supervision=deep budget.match={supervision:final}"
    )


def main(overrides: list[str]) -> None:
    asked, rest = own_keys(overrides, Asked())
    if asked.format not in ("text", "json"):
        raise UserError(f"format={asked.format}: choose one of text, json")
    if asked.memory is not None and not 0 < asked.memory < math.inf:
        raise UserError(f"memory={asked.memory:g}: must be a number above 0, in GiB")
    config = compose(rest)
    machine = find_machine(config.trainer.accelerator, config.trainer.precision)
    arms = with_twins(config)
    if asked.calibrate:
        calibrate(arms, machine)
    limit = machine.memory if asked.memory is None else asked.memory * GIB
    if asked.format == "json":
        costs = [timed_bill(arm, machine) for arm in arms]
        keys = ("twin", "iso_params")
        print(json.dumps(costs[0] | dict(zip(keys, costs[1:], strict=True))))
        return
    asked_depth = compose_node(parse_overrides(rest)).model.depth
    notes = (
        split_lines(asked_depth, config)
        + halting_lines(config)
        + memory_lines(config, machine, limit)
    )
    print(config.name, *bill_lines(config, machine), *notes, sep="\n")


if __name__ == "__main__":
    run_command(main, usage, stopped="nothing is lost")
