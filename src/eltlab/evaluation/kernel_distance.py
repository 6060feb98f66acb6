"""An unbiased kernel distance between samples and a reference, with its standard error.

The squared MMD (Gretton et al. 2012) with KID's kernel, (x·y / scale + 1)³, over all pairs. Labels of samples
are balanced and not drawn, so pairs of one class are fewer than among independent draws; a plain U-statistic
would be too small by as much as its own error. Each pair of classes is therefore averaged separately:

    T = Σ_{c,d} p_c p_d (mean k(x_c, x_d) + mean k(y_c, y_d) − 2 mean k(x_c, y_d)),   i ≠ j in each mean

with p the share of each class in the samples. Its expectation is the distance between the two laws, whatever
the counts, and whatever the share of each class in the reference.

Standard error (Hoeffding 1948): the variance of T is V₁ + V₂, of sums over single points and over pairs. If
both laws are equal, V₁ is 0. V₂ is estimated from the doubly centred kernel of each block, as in the unbiased
HSIC (Székely and Rizzo 2014; Song et al. 2012), and the jackknife J estimates V₁ + 2·V₂ (Efron and Stein
1981). J − V₂ would be unbiased, but for equal laws J varies by V₂ itself, and max(J − V₂, V₂) is 40 % too
large. The variance used is max(J − 1.5·V₂, V₂): the error is within 30 % of the true one in both cases.

The error is that of fresh samples and a fresh reference. Arms that are compared with the same reference share
the part of the reference, so their differences vary less.
"""

import math

import numpy as np
from torch import Tensor

ROWS_BYTES = 2**27  # of the kernel matrix held at a time


def kernel_distance(
    samples: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, scale: float
) -> tuple[float, float]:
    """T and its standard error, of features [n, F] and [m, F] with labels [n] and [m].

    Classes with fewer than two samples or reference images are left out; if that is all of them, labels are
    ignored.
    """
    x, y = samples.double().numpy(), reference.double().numpy()
    classes_x, classes_y = labels.numpy(), reference_labels.numpy()
    most = int(max(classes_x.max(), classes_y.max())) + 1
    counts = np.stack([np.bincount(classes, minlength=most) for classes in (classes_x, classes_y)])
    kept = np.flatnonzero(counts.min(0) >= 2)
    if not len(kept):
        classes_x, classes_y, kept = np.zeros(len(x), int), np.zeros(len(y), int), np.zeros(1, int)
        counts = np.array([[len(x)], [len(y)]])
    counts = counts[:, kept].astype(float)
    points = np.concatenate([z[by_class(c, kept)] for z, c in ((x, classes_x), (y, classes_y))])
    share = counts[0] / counts[0].sum()
    # One stratum per side and class. The weight of a point is its part of a mean, negative in the reference.
    sizes = counts.ravel()
    weights = np.concatenate([share / counts[0], -share / counts[1]])
    return _distance_and_error(points, sizes, weights, scale)


def by_class(classes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Indices of the kept classes, sorted by class."""
    order = np.argsort(classes, kind="stable")
    return order[np.isin(classes[order], kept)]


def _distance_and_error(
    points: np.ndarray, sizes: np.ndarray, weights: np.ndarray, scale: float
) -> tuple[float, float]:
    """points [N, F] are sorted by stratum; sizes and weights [S] belong to the strata."""
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(int)
    stratum = np.repeat(np.arange(len(sizes)), sizes.astype(int))
    pair_weights = np.outer(weights, weights)
    pair_weights[np.diag_indices(len(sizes))] *= sizes / (sizes - 1)  # pairs with i ≠ j
    # Sums over blocks of strata [S, S]: of k, of k², and of the squared sums of its rows.
    k1, k2, rows = (np.zeros((len(sizes),) * 2) for _ in range(3))
    influence = np.empty(len(points))  # Σ_j W_ij k_ij of each point
    at_once = max(1, ROWS_BYTES // (8 * len(points)))
    for first in range(0, len(points), at_once):
        part = slice(first, first + at_once)
        k = (points[part] @ points.T / scale + 1) ** 3
        k[np.arange(len(k)), first + np.arange(len(k))] = 0
        sums = np.add.reduceat(k, starts, axis=1)
        influence[part] = (sums * pair_weights[stratum[part]]).sum(1)
        for total, values in ((k1, sums), (k2, np.add.reduceat(k * k, starts, axis=1)), (rows, sums**2)):
            np.add.at(total, stratum[part], values)
    distance = float(influence.sum())
    pairs = 2 * (pair_weights**2 * _centred_squares(k1, k2, rows, sizes)).sum()
    means = np.add.reduceat(influence, starts) / sizes
    within = np.add.reduceat((influence - means[stratum]) ** 2, starts)
    jackknife = 4 * (within * sizes / (sizes - 1)).sum()
    return distance, math.sqrt(max(jackknife - 1.5 * pairs, pairs, 0.0))


def _centred_squares(k1: np.ndarray, k2: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Σ over the pairs of each block of E[k̃²], k̃ the kernel centred in both arguments, unbiased [S, S]."""
    n, m = sizes[:, None], sizes[None, :]
    found = (k2 - rows / m - rows.T / n + k1**2 / (n * m)) * (n * m / ((n - 1) * (m - 1)))
    # Within a stratum the diagonal is missing: U-centring, which requires four points.
    n = sizes
    of = np.maximum(n, 4)
    k1, k2, rows = (np.diagonal(each) for each in (k1, k2, rows))
    own = (k2 - 2 * rows / (of - 2) + k1**2 / ((of - 1) * (of - 2))) * (of - 1) / (of - 3)
    found[np.diag_indices(len(sizes))] = np.where(n >= 4, own, 0)
    return found
