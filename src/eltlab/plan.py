"""python -m eltlab.plan [overrides]: what fit with these overrides costs, compared with its twins.

Takes the overrides of fit (python -m eltlab.fit --help), requires neither data nor weights, and loads no
torch. Also shows the unique-layer model of equal compute and the one of equal size. MACs are multiply-adds;
1 MAC = 2 FLOPs. Its own keys:

examples:
  python -m eltlab.plan model=elt_b loops=12
  python -m eltlab.plan experiment=paper/dit_32 trainer.accelerator=cuda memory=80
  python -m eltlab.plan supervision=deep budget.match={supervision:final}
"""

import json
from dataclasses import dataclass

from eltlab.cli import own_keys
from eltlab.common.command import run_command
from eltlab.common.machine_facts import find_machine
from eltlab.config.cost.bill import bill_lines, note_lines, preset_note, timed_bill, with_twins
from eltlab.config.key_help import choice_help, help_text, key_help
from eltlab.config.keys import key
from eltlab.config.parsing import compose_node, parse_overrides
from eltlab.runs.compose_config import compose
from eltlab.training.calibration import calibrate

GIB = 2**30


@dataclass
class Keys:
    format: str = key("text", "json: one JSON object on stdout, and nothing else", choices=("text", "json"))
    calibrate: bool = key(False, "first time a few steps and passes on this machine; plans then show times")
    memory: float | None = key(None, "GiB of the device; null: of this machine", above=0)


def usage(arguments: list[str]) -> str:
    return help_text(__doc__, key_help(Keys()), choice_help())


def main(overrides: list[str]) -> None:
    keys, rest = own_keys(overrides, Keys())
    config = compose(rest)
    machine = find_machine(config.trainer.accelerator, config.trainer.precision)
    arms = with_twins(config)
    if keys.calibrate:
        calibrate(arms, machine)
    limit = machine.memory if keys.memory is None else keys.memory * GIB
    if keys.format == "json":
        costs = [timed_bill(arm, machine) for arm in arms]
        names = ("twin", "iso_params")
        print(json.dumps(costs[0] | dict(zip(names, costs[1:], strict=True))))
        return
    parsed = parse_overrides(rest)
    notes = note_lines(config, machine, limit, compose_node(parsed).model.depth)
    preset = compose_node([(key, value) for key, value in parsed if "." not in key])
    notes += preset_note(config.model, preset.model, dict(parsed))
    print(config.name, *bill_lines(config, machine), *notes, sep="\n")


if __name__ == "__main__":
    run_command(main, usage, stopped="nothing is lost")
