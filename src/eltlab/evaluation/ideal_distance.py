"""The Fréchet distance of ideal samples, and what a distance would be with infinitely many samples.

A Fréchet distance of n samples is too large even if they come from the reference's own law, by a part from
the mean and a part from the covariance (Chong and Forsyth 2020):

    E FD(n) = FD(∞) + noise(n) + spread(n)

noise(n) = Σ_c (n_c/n)² tr Σ_c / n_c is the variance of the mean of n samples with fixed labels; it is
estimated without bias from the samples. spread(n) has no closed form. Chong and Forsyth fit a line in 1/n,
which fails if n is not far larger than the number of features. Here the line is fitted against the same part
of ideal samples: with C(m) the covariance's part of the distance of m samples, and I(m) that of ideal ones,

    C(m) = C(∞) + slope · I(m),   so   FD(∞) = FD(n) − noise(n) − slope · I(n),

with the slope from m = n and m = n/4. For ideal samples this is exact at any n, with FD(∞) = 0 and a slope of
1. The slope absorbs that samples which vary less than the reference (a collapsed model) have a smaller bias.

Ideal samples are draws from the reference's images if mean and covariance are those of these images, or if
there are many of them for each feature. Draws from few images of a larger reference would vary too little (by
5 % of I(n) with 5 images per feature, by 24 % with 1). Then each class is normal, with its mean in the images
and one covariance for all classes, such that mean and covariance of the whole are those of the reference.
This is exact for normal features, and within about 7 % for the digits' with 3 or more images per feature. One
normal law for all would not do: balanced samples do not draw what varies between classes, more than half of
the digits' variance.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from eltlab.common.seeds import fold
from eltlab.evaluation.distances import Statistics, statistics

PARTS = 4  # the smaller number of samples is a quarter
# Draws of ideal samples: as many as have this many feature values, within the limits.
VALUES, FEWEST, MOST = 6_400_000, 8, 512
ENOUGH = 20  # reference images per feature, to be drawn from in place of a larger reference
PROTOCOL = (
    f"ideal: {VALUES} values in {FEWEST} to {MOST} draws by class of reference images, or of normal classes "
    f"if the statistics are of more images and these fewer than {ENOUGH} per feature, "
    f"extrapolated from n and n/{PARTS}"
)


class Ideal(NamedTuple):
    """What ideal samples of one number get: the distance, and I at n and at n/4."""

    distance: float
    whole: float
    quarter: float


class CovarianceTerm:
    """tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½), the covariance's part of the Fréchet distance to a reference."""

    def __init__(self, reference: Statistics) -> None:
        values, vectors = np.linalg.eigh(reference["sigma"])
        self.root = (vectors * np.sqrt(values.clip(0))) @ vectors.T  # Σ₂^½
        self.trace = np.trace(reference["sigma"])

    def __call__(self, features: np.ndarray) -> float:
        """Of features float64 [n, F]. (Σ₁Σ₂)^½ has the eigenvalues of (Σ₂^½ Σ₁ Σ₂^½)^½."""
        centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
        trace = (centred**2).sum()
        if len(centred) > centred.shape[1]:
            square = self.root @ (centred.T @ centred) @ self.root
        else:  # the same eigenvalues but for zeros, from the smaller matrix
            product = centred @ self.root
            square = product @ product.T
        return float(trace + self.trace - 2 * np.sqrt(np.linalg.eigvalsh(square).clip(0)).sum())

    def whole_and_quarter(self, features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        """The term of all features, and its mean over quarters with equal shares of each class."""
        order = np.argsort(labels, kind="stable")
        parts = min(PARTS, len(features) // 2)
        return self(features), float(np.mean([self(features[order[i::parts]]) for i in range(parts)]))


def mean_noise(features: np.ndarray, labels: np.ndarray) -> float:
    """E‖mean − its expectation‖² of features [n, F] with these labels, without bias."""
    groups = [features[labels == label] for label in np.unique(labels)]
    # A class with one sample shows no variance; the other classes stand for it.
    groups = [group for group in groups if len(group) > 1] or [features]
    variances = sum(len(group) * group.var(0, ddof=1).sum() for group in groups)
    return float(variances / sum(map(len, groups)) / len(features))


def ideal_draws(
    reference: np.ndarray, classes: np.ndarray, labels: np.ndarray, within: np.ndarray | None = None
) -> Callable[[int], np.ndarray]:
    """draw(i): features [n, F] drawn with replacement, for each label from the images of its class.
    A class that the reference does not have is drawn from all images. within: the root [F, F] of the
    covariance of normal noise that is added; None: no noise."""
    wanted = [
        (np.flatnonzero(labels == label), np.flatnonzero(classes == label)) for label in np.unique(labels)
    ]

    def draw(i: int) -> np.ndarray:
        rng = np.random.default_rng(fold(0, "ideal", i))
        chosen = np.empty(len(labels), int)
        for places, pool in wanted:
            chosen[places] = rng.choice(pool if len(pool) else len(reference), len(places))
        if within is None:
            return reference[chosen]
        return reference[chosen] + rng.standard_normal((len(labels), len(within))) @ within

    return draw


def ideal_samples(
    features: Tensor, classes: Tensor, labels: Tensor, moments: Statistics | None = None
) -> Ideal:
    """What ideal samples with these labels [n] get. features [m, F], classes [m]: of the reference's images.
    moments: those that samples are compared with, if they are of more images than the features.

    The mean over seeded draws; the part of the mean, which varies most, is their exact expectation.
    """
    reference, known, wanted = features.double().numpy(), classes.numpy(), labels.numpy()
    within = None
    if moments is None or len(reference) >= ENOUGH * reference.shape[1]:
        moments = statistics(features)
    else:
        reference, within = normal_classes(reference, known, moments)
    term = CovarianceTerm(moments)
    draw = ideal_draws(reference, known, wanted, within)
    draws = min(max(VALUES // (len(wanted) * reference.shape[1]), FEWEST), MOST)
    whole, quarter = np.mean([term.whole_and_quarter(draw(i), wanted) for i in range(draws)], axis=0)
    mean, noise = expected_mean(reference, known, wanted)
    if within is not None:
        noise += (within**2).sum() / len(wanted)
    offset = ((mean - moments["mu"]) ** 2).sum()
    return Ideal(float(offset + noise + whole), float(whole), float(quarter))


def normal_classes(
    features: np.ndarray, classes: np.ndarray, moments: Statistics
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the class of each image [m, F], and the root [F, F] of the covariance within classes, such
    that both together have these moments.

    Differences between means of classes with few images are mostly noise: they are shrunk by √(1 − 1/f),
    where f is the ratio of variances of the analysis of variance."""
    between = np.empty_like(features)
    for label in np.unique(classes):
        between[classes == label] = features[classes == label].mean(0)
    within, count = ((features - between) ** 2).sum(), len(np.unique(classes))
    between -= features.mean(0)
    freedom = (len(features) - count) * (between**2).sum()
    share = 1 - (count - 1) * within / freedom if freedom > 0 else 0.0
    between *= np.sqrt(max(share, 0.0))
    root = CovarianceTerm(moments | {"sigma": moments["sigma"] - between.T @ between / len(between)}).root
    return moments["mu"] + between, root


def expected_mean(reference: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """The expected mean of ideal draws with these labels, and E‖mean − its expectation‖²."""
    mean, noise = np.zeros(reference.shape[1]), 0.0
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        pool = reference[classes == label] if (classes == label).any() else reference
        mean += count * pool.mean(0)
        noise += count * pool.var(0).sum()
    return mean / len(labels), float(noise / len(labels) ** 2)


def extrapolate(
    distance: float, features: Tensor, labels: Tensor, term: CovarianceTerm, ideal: Ideal
) -> float:
    """FD(∞) from the distance of features [n, F] with labels [n]; may be below zero by its noise."""
    x, y = features.double().numpy(), labels.numpy()
    whole, quarter = term.whole_and_quarter(x, y)
    growth = ideal.quarter - ideal.whole
    slope = (quarter - whole) / growth if growth > 0 else 1.0
    return distance - mean_noise(x, y) - slope * ideal.whole
