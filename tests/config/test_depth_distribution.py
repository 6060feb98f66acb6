"""The loop counts that random depth draws: a truncated Poisson distribution with the requested mean."""

import pytest
from support.supervisions import random_depth

from eltlab.config.depth_distribution import depth_distribution


@pytest.mark.parametrize("mean", [1.3, 4.0, 6.5])
def test_poisson_depths_have_the_requested_mean_and_shape(mean):
    law = depth_distribution("poisson", 1, 8, mean)
    assert list(law) == list(range(1, 9)) and sum(law.values()) == pytest.approx(1)
    assert sum(n * fraction for n, fraction in law.items()) == pytest.approx(mean, abs=1e-9)
    # Poisson: p(ℓ)/p(ℓ − 1) = μ/(ℓ − 1), with one μ for every ℓ, although the distribution is truncated.
    rates = [law[n] / law[n - 1] * (n - 1) for n in range(2, 9)]
    assert rates == pytest.approx([rates[0]] * 7)
    supervision = random_depth(law="poisson", mean=mean)
    drawn = [supervision.exits(step)[0] for step in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(mean, abs=0.15)
