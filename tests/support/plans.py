"""Calls plan in this process, on a machine that has no GPU."""

import json

import pytest

from eltlab import plan
from eltlab.common import machine_facts


def planned(capsys, *overrides: str) -> dict:
    """What format=json prints; nothing else is on stdout."""
    return json.loads(output(capsys, *overrides, "format=json"))


def lines(capsys, *overrides: str) -> list[str]:
    return output(capsys, *overrides).splitlines()


def output(capsys, *overrides: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine_facts, "find_gpu", lambda: None)  # it would start nvidia-smi
        plan.main(list(overrides))
    return capsys.readouterr().out


def cell(text: list[str], label: str) -> list[str]:
    """The cells of a line of the table."""
    [found] = [line for line in text if line.strip().startswith(label + "  ")]
    return found.strip().removeprefix(label).split()
