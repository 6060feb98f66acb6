"""The moving average of the weights."""

import torch

from eltlab.training.ema import ema_copy, ema_decay, ema_update


def test_the_average_is_of_the_backbone_and_warms_up() -> None:
    live = torch.nn.Linear(2, 2)
    average = ema_copy(live)
    start = average.weight.clone()
    with torch.no_grad():
        live.weight.add_(1.0)
    ema_update(average, live, 0.75)
    torch.testing.assert_close(average.weight, start + 0.25)
    assert not average.weight.requires_grad and not average.training
    assert ema_decay(0.999, 0) == 0.1 and ema_decay(0.999, 10**6) == 0.999
