"""Distributions of the loop count that supervision=random_depth trains at."""

import math

DepthDistribution = dict[int, float]  # share of passes at each loop count; the shares add up to 1


def depth_distribution(law: str, low: int, high: int, mean: float | None = None) -> DepthDistribution:
    """The share of steps at each loop count from low to high.

    uniform: every count has the same share. poisson: p(ℓ) ∝ μ^(ℓ − low)/(ℓ − low)!, the Poisson
    distribution truncated at high, where μ is chosen so that its mean is `mean`, low < mean < high.
    """
    counts = range(low, high + 1)
    if law == "uniform":
        return {count: 1 / len(counts) for count in counts}
    assert law == "poisson" and mean is not None and low < mean < high

    def shares(log_rate: float) -> dict[int, float]:
        logs = [k * log_rate - math.lgamma(k + 1) for k in range(len(counts))]
        weights = [math.exp(value - max(logs)) for value in logs]
        return {n: weight / sum(weights) for n, weight in zip(counts, weights, strict=True)}

    # The mean rises from low to high as μ grows, so log μ is found by bisection.
    below, above = -50.0, 50.0
    for _ in range(200):
        middle = (below + above) / 2
        reached = sum(count * share for count, share in shares(middle).items())
        below, above = (middle, above) if reached < mean else (below, middle)
    return shares(above)
