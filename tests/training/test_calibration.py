"""The rates that plan measures on this machine."""

import pytest
from support.plans import planned
from support.tiny_run import TINY

from eltlab import plan
from eltlab.common import machine_facts
from eltlab.common.errors import UserError
from eltlab.config.cost.measured_rates import read_rates

pytestmark = pytest.mark.usefixtures("uncalibrated")


def test_a_second_calibration_replaces_the_first(capsys):
    for _ in range(2):
        planned(capsys, *TINY, "loops=1", "calibrate=true")
    assert len(read_rates()) == 1


def test_calibrating_what_is_not_here_or_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(machine_facts, "find_gpu", lambda: None)
    with pytest.raises(UserError, match="there is no GPU here"):
        plan.main(["trainer.accelerator=cuda", "calibrate=true"])
    with pytest.raises(UserError, match="calibrate a smaller batch_size or model"):
        plan.main(["experiment=paper/dit_32", "calibrate=true"])
