"""Laws of the loop count that random_depth trains at."""

import math

LAWS = ("uniform", "poisson")

DepthDistribution = dict[
    int, float
]  # the share of passes that run each loop count; the shares add up to 1


def depth_distribution(
    law: str, low: int, high: int, mean: float | None = None
) -> DepthDistribution:
    """The share of steps at each loop count low…high; the shares add up to 1.

    uniform: every count alike. poisson: p(ℓ) ∝ μ^(ℓ − low)/(ℓ − low)!, the Poisson law cut at high,
    with μ solved for so that the mean of what is left is `mean`, low < mean < high.
    """
    counts = range(low, high + 1)
    if law == "uniform":
        return {count: 1 / len(counts) for count in counts}
    assert law == "poisson" and mean is not None and low < mean < high

    def shares(log_rate: float) -> dict[int, float]:
        logs = [k * log_rate - math.lgamma(k + 1) for k in range(len(counts))]
        weights = [math.exp(value - max(logs)) for value in logs]
        return {n: weight / sum(weights) for n, weight in zip(counts, weights, strict=True)}

    # The mean rises with μ from low to high: bisection on log μ.
    below, above = -50.0, 50.0
    for _ in range(200):
        middle = (below + above) / 2
        reached = sum(count * share for count, share in shares(middle).items())
        below, above = (middle, above) if reached < mean else (below, middle)
    return shares(above)
