"""The means of what a step logs."""

import pytest
import torch

from eltlab.training.running_means import Meter


def test_each_name_is_averaged_over_the_steps_that_logged_it() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0), "student": 2})
    meter.add({"loss": torch.tensor(2.0), "update": torch.tensor(5.0)})
    assert meter.flush() == {"loss": 1.5, "student": 2.0, "update": 5.0}
    assert meter.flush() == {}  # the means since the last flush
    meter.add({"loss": torch.tensor(7.0)})
    assert meter.flush() == {"loss": 7.0}


def test_a_restored_meter_goes_on_as_if_it_had_never_been_stored() -> None:
    meters = [Meter(), Meter()]
    for meter in meters:
        meter.add({"loss": torch.tensor(0.1), "weight": 0.25})
    again = Meter()
    again.restore(meters[1].state())
    for meter in (meters[0], again):
        meter.add({"loss": torch.tensor(0.7), "weight": 0.75})
    assert again.flush() == pytest.approx(meters[0].flush(), rel=1e-7)


def test_storing_a_meter_does_not_change_it() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(3.0)})
    assert meter.state() == meter.state() == {"sums": {"loss": 3.0}, "counts": {"loss": 1}}
    assert meter.flush() == {"loss": 3.0}


def test_no_graph_of_a_step_is_kept() -> None:
    meter = Meter()
    meter.add({"loss": torch.ones(3, requires_grad=True).sum()})
    assert not meter.sums["loss"].requires_grad


def test_half_precision_is_reported_in_float32() -> None:
    meter = Meter()
    meter.add({"loss": torch.tensor(1.5, dtype=torch.bfloat16)})
    assert meter.flush() == {"loss": 1.5}
