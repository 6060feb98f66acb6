"""Times in a plan: from a calibration on this machine, or none."""

import json

import pytest
from support.plans import cell, lines, planned
from support.tiny_run import TINY

from eltlab.config.cost import measured_rates

pytestmark = pytest.mark.usefixtures("uncalibrated")


def test_times_come_from_a_calibration(capsys):
    assert planned(capsys, *TINY)["train_seconds"] is None
    assert "calibrate=true" in lines(capsys, *TINY)[-1]
    calibrated = planned(capsys, *TINY, "calibrate=true")
    assert calibrated["train_seconds"] > 0 and calibrated["iso_params"]["train_seconds"] > 0
    # Later plans use it without measuring; times are proportional to the budget.
    assert planned(capsys, *TINY) == calibrated
    longer = planned(capsys, *TINY, "budget.images=640")
    assert longer["train_seconds"] == pytest.approx(10 * calibrated["train_seconds"])
    text = lines(capsys, *TINY)
    assert text[-1].endswith("with this configuration") and cell(text, "training time")
    # As many parameters, but a different network: not this configuration.
    for other in ("supervision=deep", "trainer.recompute=true", "model.block=pre_norm"):
        assert "with this configuration" not in lines(capsys, *TINY, other)[-1]
    # A different configuration uses the nearest calibration, and says so.
    other = lines(capsys, *TINY, "model.width=32")
    assert "width 16, 16 tokens, batch 8" in other[-1]


def test_invalid_entries_of_the_cache_are_skipped(capsys):
    planned(capsys, *TINY, "loops=1", "calibrate=true")
    file = measured_rates.rates_file()
    file.write_text('{"machine": "x"}\n' + file.read_text() + '{"torn')
    assert planned(capsys, *TINY, "loops=1")["train_seconds"] > 0


def test_rates_of_another_machine_are_not_used(capsys):
    planned(capsys, *TINY, "loops=1", "calibrate=true")
    file = measured_rates.rates_file()
    entries = [json.loads(line) | {"machine": "another"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert planned(capsys, *TINY, "loops=1")["train_seconds"] is None
    assert "calibrate=true" in lines(capsys, *TINY, "loops=1")[-1]
