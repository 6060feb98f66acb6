"""The bytes of live tensors on the CPU."""

import torch

from eltlab.training.live_memory import LiveMemory


def test_live_bytes_follow_storages_and_not_tensors():
    weight = torch.ones(10, requires_grad=True)
    with LiveMemory() as live:
        a = torch.ones(100)
        view, detached = a[:50].view(5, 10), a.detach()
        a.add_(1)
        assert live.current == live.peak == 400
        b = a * 2
        del a
        assert live.current == 800  # the views keep it alive
        del view, detached
        assert (live.current, live.peak) == (400, 800)
        weight.data.add_(1)
        assert live.current == 400  # it existed before
        live.reset_peak()
        assert live.peak == 400
        (weight * 2).sum().backward()
        assert live.current == 440 < live.peak  # the gradient is left; the backward needed more
        weight.grad = None
        del b
    assert live.current == 0
    torch.ones(1000)
    assert live.peak < 4000
