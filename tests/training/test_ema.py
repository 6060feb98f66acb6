"""The power-function averages of the weights, against sums over all steps."""

import math

import pytest
import torch

from eltlab.training.ema import ema_copy, ema_decay, ema_update, exponent, relative_length

LENGTHS = (0.01, 0.05, 0.1, 0.2, 0.28)


def shares(length: float, steps: int) -> list[float]:
    """The share of each step's weights in the average after these steps."""
    found = [0.0] * steps
    for step in range(steps):
        decay = ema_decay(exponent(length), step)
        found = [share * decay for share in found]
        found[step] = 1 - decay
    return found


def test_the_average_is_a_frozen_copy_of_the_backbone() -> None:
    live = torch.nn.Linear(2, 2)
    average = ema_copy(live)
    start = average.weight.clone()
    with torch.no_grad():
        live.weight.add_(1.0)
    ema_update(average, live, 0.75)
    torch.testing.assert_close(average.weight, start + 0.25)
    assert not average.weight.requires_grad and not average.training


@pytest.mark.parametrize("length", LENGTHS)
def test_the_exponent_of_a_length_gives_it_back(length: float) -> None:
    assert relative_length(exponent(length)) == pytest.approx(length, rel=1e-12)
    assert exponent(length) >= 0


def test_exponents_are_those_of_the_paper() -> None:
    """EDM2 (arXiv 2312.02696) names sigma_rel 0.05 and 0.10 for gamma 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)


def test_the_first_step_forgets_the_initial_weights() -> None:
    assert ema_decay(exponent(0.05), 0) == 0 and ema_decay(exponent(0.05), 1) > 0


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("steps", [400, 1600])
def test_the_weights_of_the_steps_have_the_profile_and_the_length(length: float, steps: int) -> None:
    weights, gamma = shares(length, steps), exponent(length)
    assert sum(weights) == pytest.approx(1)
    mean = sum(w * (t + 1) for t, w in enumerate(weights))
    deviation = math.sqrt(sum(w * (t + 1 - mean) ** 2 for t, w in enumerate(weights)))
    assert deviation / steps == pytest.approx(length, rel=0.02)
    # The profile is that of t^gamma, normalised over the run, from a tenth of it on.
    for t in range(steps // 10, steps + 1, steps // 10):
        profile = (gamma + 1) / steps * ((t - 0.5) / steps) ** gamma
        assert weights[t - 1] == pytest.approx(profile, rel=0.01, abs=1e-12)


def test_updates_give_the_weighted_sum_of_all_steps() -> None:
    live = torch.nn.Linear(3, 2)
    average, seen = ema_copy(live), []
    generator = torch.Generator().manual_seed(0)
    for step in range(50):
        with torch.no_grad():
            live.weight.copy_(torch.randn(2, 3, generator=generator))
        seen.append(live.weight.detach().clone())
        ema_update(average, live, ema_decay(exponent(0.1), step))
    expected = sum(share * weight for share, weight in zip(shares(0.1, 50), seen, strict=True))
    torch.testing.assert_close(average.weight.detach(), expected)
